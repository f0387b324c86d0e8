"""Experiments whose searcher is driven with known results, without Ray."""

from __future__ import annotations

from typing import Any

from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.experiment.spec import ExperimentSpec
from components.records.events import Progress
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


def report(target_tokens: int, eval_loss: float, **fields: Any) -> Progress:
    return progress(1, eval_loss, target_tokens=target_tokens, **fields)


def drawn(searcher: BranchedSearcher) -> dict[str, Any]:
    """The next trial, as the journal has it."""
    trial: dict[str, Any] = searcher.draw().model_dump(mode="json")
    return trial


def end(searcher: BranchedSearcher, number: int, *reports: Progress, impossible: bool = False) -> None:
    searcher.end(number, reports, impossible=impossible)
