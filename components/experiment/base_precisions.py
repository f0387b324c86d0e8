"""The forms in which the trials of a search need their base model in memory: its dtype, and how it is quantized."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from components.experiment.space import Branch, branches_of, corner_trials
from components.experiment.spec import Dtype, ExperimentSpec, FullMethod, LoraMethod, ModelSpec, TrialSpec, WorkersSpec

BF16_FULL = (
    "full fine-tuning with dtype=bf16 rounds most updates away (200 steps at a learning rate of 1e-5 move one linear weight"
    " in six, and all of them in fp32: experiments/benchmarks/full_dtype.md); dtype: auto keeps the weights in fp32"
)


class BaseVariant(NamedTuple):
    """One form of the base model in memory. Trials of the same variant can share it."""

    dtype: Dtype
    quantize: Literal["nf4", "int8"] | None = None


def base_variant(model: ModelSpec, trial: TrialSpec) -> BaseVariant:
    quantize = trial.method.quantize if isinstance(trial.method, LoraMethod) else None
    return BaseVariant(model.dtype_of(trial), quantize)


def base_variants(experiment: ExperimentSpec, workers: WorkersSpec) -> set[BaseVariant]:
    """Returns the variants of all trials that run on such workers."""
    return {
        base_variant(branch.model, trial)
        for branch, trial in _corners(experiment)
        if experiment.workers_of(trial.method) == workers
    }


def dtype_warnings(experiment: ExperimentSpec) -> list[str]:
    """Returns a warning for each branch of full fine-tuning with plain bf16 weights: allowed, but likely a mistake."""
    affected = {
        branch.name
        for branch, trial in _corners(experiment)
        if isinstance(trial.method, FullMethod) and branch.model.dtype_of(trial) == "bf16"
    }
    return [f"search.space.{name}: {BF16_FULL}" for name in sorted(affected)]


def _corners(experiment: ExperimentSpec) -> Iterator[tuple[Branch, TrialSpec]]:
    for branch in branches_of(experiment).values():
        for trial in corner_trials(experiment, branch):
            yield branch, trial
