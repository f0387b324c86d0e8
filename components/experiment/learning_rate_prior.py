"""`optimizer.learning_rate: auto` in a branch: a range by method and model size, for those who have none of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.experiment.parse_trial import AUTO_RANGE
from components.experiment.space import branches_of
from components.experiment.spec import ExperimentSpec

AUTO = "auto"
FULL_AT_A_BILLION, FALL = 5.0e-5, 0.3
LORA_TIMES_FULL = 10.0
EACH_WAY = 5.0  # the range ends at a fifth and at five times what is expected


def expected_learning_rate(kind: str, parameters: int) -> float:
    """Returns the peak learning rate that AdamW is expected to do best with, for fine-tuning a model of this size.

    Schulman and Thinking Machines Lab, "LoRA Without Regret" (2025), sweep 14 Llama and Qwen models: the best rate of LoRA is
    10 times that of full fine-tuning, whatever the rank (15 times in short runs), and that of full fine-tuning is
    5e-5 x (2000 / hidden size)^0.781 for Llama. In parameters, 5e-5 x (1e9 / parameters)^0.3 stays within a factor of 1.5 of
    it from 135 million to 70 billion. Dettmers et al., "QLoRA" (2023), train 7 billion with 2e-4 and 65 billion with 1e-4;
    this gives 2.8e-4 and 1.4e-4.
    """
    full: float = FULL_AT_A_BILLION * (1e9 / parameters) ** FALL
    return full * LORA_TIMES_FULL if kind == "lora" else full


def settle_learning_rates(experiment: ExperimentSpec, parameters: int) -> tuple[ExperimentSpec, list[str]]:
    """Replaces each `auto` by its range. Returns the experiment, and a sentence for each branch that had one."""
    space, sentences = dict(experiment.search.space), []
    for name, tree in space.items():
        optimizer = tree.get("optimizer")
        if not isinstance(optimizer, Mapping) or optimizer.get("learning_rate") != AUTO:
            continue
        kind = branches_of(experiment)[name].constants.get("method.kind", experiment.trial.method.kind)
        expected = expected_learning_rate(kind, parameters)
        ends = [_short(expected / EACH_WAY), _short(expected * EACH_WAY)]
        settled: dict[str, Any] = {**optimizer, "learning_rate": {"log_uniform": ends}}
        space[name] = {**tree, "optimizer": settled}
        sentences.append(
            f"search.space.{name}.{AUTO_RANGE}=auto: from {ends[0]:g} to {ends[1]:g}, around {_short(expected):g}, which is"
            f" expected of {kind} for {parameters / 1e6:,.0f} million parameters"
        )
    if not sentences:
        return experiment, []
    return experiment.model_copy(update={"search": experiment.search.model_copy(update={"space": space})}), sentences


def _short(rate: float) -> float:
    return float(f"{rate:.2g}")
