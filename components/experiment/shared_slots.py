"""Which trials share a slot, where `search.trials_per_slot` lets several train in one pass over one base model."""

from __future__ import annotations

from components.experiment.base_precisions import base_variant
from components.experiment.spec import LoraMethod, Method, ModelSpec, TrialSpec

NOT_BY_TOKENS = "method.dora: true computes with an adapter's whole weight, and not by tokens: set dora: false"


def why_alone(method: Method, workers: int) -> str:
    """Returns why a trial can be trained beside no other one; empty if it can."""
    if not isinstance(method, LoraMethod):
        return "full fine-tuning changes the base, which other trials would train on"
    if method.dora:
        return NOT_BY_TOKENS
    if method.quantize is not None:
        return f"method.quantize: {method.quantize} computes its own products, which take one adapter at a time"
    if workers > 1:
        return f"a trial with {workers} workers adds gradients up over them, trial by trial"
    return ""


def kind_of(model: ModelSpec, trial: TrialSpec) -> str:
    """Returns the same text for trials that one pass can compute: what it has only one of.

    Args:
        model: the base model of the trial's branch.
    """
    dtype, checkpoints = base_variant(model, trial).dtype, trial.gradient_checkpointing
    return f"{model.model_dump_json()}, {dtype}, precision {trial.precision}, gradient_checkpointing {checkpoints}"
