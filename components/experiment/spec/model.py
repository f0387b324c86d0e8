"""The section `model:`: the base model that every trial starts from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.experiment.spec.method import LoraMethod
from components.experiment.spec.resources import WorkersSpec
from components.experiment.spec.section import Dtype, Spec, check_uris
from components.experiment.spec.trial import TrialSpec

FLASH_ATTENTION = "flash_attention_2"


class ModelSpec(Spec):
    """The base model every trial starts from."""

    path: str = Field(
        description="A directory, a Hugging Face hub id, `smollm2-135m-instruct` (fetched once), or an s3:// or gs:// URI."
    )
    revision: str | None = Field(None, description="Branch, tag or commit of a hub id.")
    dtype: Literal["auto"] | Dtype = Field(
        "auto",
        description="What the base's weights are kept in. `auto`: fp32 for full fine-tuning; for LoRA bf16, or fp32 where"
        " the trial's precision is fp32. A trial may have a dtype of its own.",
    )
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = Field(
        "auto",
        description="`auto`: the best that the model and this machine support. flash_attention_2 needs GPUs, precision bf16"
        " and the package flash-attn in every worker.",
    )

    @model_validator(mode="after")
    def _is_a_uri(self) -> Self:
        check_uris(path=self.path)
        return self

    def dtype_of(self, trial: TrialSpec) -> Dtype:
        """Returns the dtype of the base's weights while this trial trains.

        LoRA does not change the base's weights. Where matrices are multiplied in bf16, float32 weights would take twice the
        memory without any effect. The adapters are always float32. Full fine-tuning adds small updates to the weights, and
        bf16 would round most of them away.
        """
        wanted = trial.dtype or self.dtype
        if wanted != "auto":
            return wanted
        return trial.computed_in if isinstance(trial.method, LoraMethod) else "fp32"

    def for_trial(self, trial: TrialSpec) -> Self:
        """Returns this model with the dtype that the trial uses, never `auto`."""
        return self.model_copy(update={"dtype": self.dtype_of(trial)})

    def check_trial(self, trial: TrialSpec, workers: WorkersSpec) -> None:
        """Raises ValueError if the trial's precision or its workers do not fit this model's dtype or attention."""
        if trial.precision == "fp32" and self.dtype_of(trial) == "bf16":
            raise ValueError(
                "precision=fp32 with dtype=bf16: what is computed with bf16 weights is computed in bf16; set precision: bf16,"
                " or dtype: fp32"
            )
        if self.attention == FLASH_ATTENTION and trial.precision == "fp32":
            raise ValueError(
                f"precision=fp32 with model.attention={FLASH_ATTENTION}: it computes in 16 bits only; set precision: bf16, or"
                " model.attention: sdpa"
            )
        if self.attention == FLASH_ATTENTION and not workers.gpus_per_worker:
            raise ValueError(
                f"model.attention={FLASH_ATTENTION} computes on GPUs only, and resources.{trial.method.kind} has none; set"
                f" resources.{trial.method.kind}.gpus_per_worker, or model.attention: sdpa"
            )
