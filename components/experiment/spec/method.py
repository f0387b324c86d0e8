"""The section `trial.method:`: what a trial trains, adapters (LoRA, QLoRA) or every weight."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from components.experiment.spec.section import Amount, Count, Spec


class LoraMethod(Spec):
    """Low-rank adapters on a frozen base. With `quantize` the base is kept in 4 or 8 bits: QLoRA."""

    kind: Literal["lora"] = "lora"
    rank: Count = 16
    alpha: Amount = 32.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    target_modules: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = Field(
        "all-linear", description="`all-linear` is every linear layer but the head, and every expert of a mixture."
    )
    rslora: bool = Field(False, description="Scale by alpha / sqrt(rank) instead of alpha / rank.")
    dora: bool = Field(False, description="Learn each weight's magnitude beside its direction.")
    quantize: Literal["nf4", "int8"] | None = None


class FullMethod(Spec):
    """Every weight is trained."""

    kind: Literal["full"] = "full"


Method = Annotated[LoraMethod | FullMethod, Field(discriminator="kind")]

NOT_BY_TOKENS = "method.dora: true computes with an adapter's whole weight, and not by tokens: set dora: false"


def why_alone(method: LoraMethod | FullMethod, workers: int) -> str:
    """Returns why a trial can be trained beside no other one on the same base model; empty if it can."""
    if not isinstance(method, LoraMethod):
        return "full fine-tuning changes the base, which other trials would train on"
    if method.dora:
        return NOT_BY_TOKENS
    if method.quantize is not None:
        return f"method.quantize: {method.quantize} computes its own products, which take one adapter at a time"
    if workers > 1:
        return f"a trial with {workers} workers adds gradients up over them, trial by trial"
    return ""
