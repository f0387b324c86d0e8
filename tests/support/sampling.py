"""Experiments whose searcher is driven with known results, without a cluster."""

from __future__ import annotations

from typing import Any

from ray.tune.utils import flatten_dict

from components.cluster.slots.slot_result import ExitReason, SlotResult
from components.experiment.spec import ExperimentSpec
from tests.support.records import progress

BUDGET = 1000
SPACE: dict[str, Any] = {
    "lora": {"method": {"rank": {"choice": [4, 8]}}, "optimizer": {"learning_rate": {"log_uniform": [1e-5, 1e-1]}}},
    "full": {"method": {"kind": "full"}, "optimizer": {"learning_rate": {"log_uniform": [1e-6, 1e-2]}}},
}


def experiment(
    trials: int = 24, space: dict[str, Any] = SPACE, budget: int = BUDGET, evaluations: int = 4, **search: Any
) -> ExperimentSpec:
    return ExperimentSpec.model_validate(
        {
            "name": "toy",
            "model": {"path": "somewhere"},
            "data": {"train": "a.jsonl"},
            "trial": {"budget": {"target_tokens": budget, "evaluations": evaluations}},
            "search": {"trials": trials, "sampler": "tpe", "space": space, **search},
        }
    )


def result(
    target_tokens: int,
    eval_loss: float,
    *,
    failure: str | None = None,
    diverged: str | None = None,
    exit_reason: ExitReason | None = None,
) -> dict[str, Any]:
    """As a slot makes it and Tune flattens it."""
    report = progress(1, eval_loss, target_tokens=target_tokens, diverged=diverged)
    slot = SlotResult(slot="s", progress=report, failure=failure, exit_reason=exit_reason)
    flat: dict[str, Any] = flatten_dict(slot.to_tune())
    return flat
