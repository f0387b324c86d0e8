"""Which trials may share a slot, where `search.trials_per_slot` lets several train in one pass over one base model."""

from __future__ import annotations

from components.experiment.base_precisions import base_variant
from components.experiment.spec import ModelSpec, TrialSpec


def kind_of(model: ModelSpec, trial: TrialSpec) -> str:
    """Returns the same text for trials that one pass can compute: what it has only one of.

    Args:
        model: the base model of the trial's branch.
    """
    dtype, checkpoints = base_variant(model, trial).dtype, trial.gradient_checkpointing
    return f"{model.model_dump_json()}, {dtype}, precision {trial.precision}, gradient_checkpointing {checkpoints}"
