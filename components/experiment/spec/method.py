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
