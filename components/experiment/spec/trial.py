"""The section `trial:`: everything that decides what one trial trains, and nothing else.

Two equal TrialSpecs over the same data end with equal weights.
"""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from components.experiment.spec.method import LoraMethod, Method
from components.experiment.spec.section import (
    Amount,
    Count,
    Dtype,
    Evaluations,
    Fraction,
    NonNegativeAmount,
    Seed,
    Share,
    Spec,
    Tokens,
    fill_in_tag,
)


class OptimizerSpec(Spec):
    name: Literal["adamw", "paged_adamw_8bit"] = Field("adamw", description="The 8-bit one needs CUDA.")
    learning_rate: Amount = 2.0e-4
    betas: tuple[Share, Share] = (0.9, 0.999)
    epsilon: Amount = 1.0e-8
    weight_decay: NonNegativeAmount = 0.0
    max_grad_norm: Amount = 1.0


class ScheduleSpec(Spec):
    """Learning rate as a function of the share of the budget spent: trials with other batch sizes decay alike."""

    name: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_fraction: Fraction = Field(0.05, description="Share of the budget spent warming up from zero.")
    final_fraction: Fraction = Field(0.1, description="Learning rate at the end, as a share of its peak.")


class BatchSpec(Spec):
    rows_per_step: Count = Field(8, description="Rows in one optimizer step, over all workers and micro-batches.")
    rows_per_micro_batch: Count = Field(8, description="At most this many rows in one forward pass of one worker.")
    packing: Literal["auto"] | bool = Field(
        "auto",
        description="Fill a row with several conversations that cannot see each other. `auto`: where the model keeps them"
        " apart.",
    )

    def check_workers(self, num_workers: int) -> None:
        """Raises ValueError if a step has fewer rows than there are workers."""
        if self.rows_per_step < num_workers:
            raise ValueError(
                f"batch.rows_per_step={self.rows_per_step} leaves workers idle: give each of the {num_workers} workers a row,"
                " or the method fewer workers"
            )


class BudgetSpec(Spec):
    """How long a trial trains. All trials of a search share it, and schedulers compare them at equal target tokens."""

    target_tokens: Tokens | None = Field(None, description="Tokens scored, over all epochs.")
    epochs: Amount | None = Field(None, le=1e6, description="Passes over the training conversations.")
    evaluations: Evaluations = Field(
        4, description="Evaluations with a checkpoint, evenly over the budget; the last ends it."
    )

    @model_validator(mode="after")
    def _one_measure(self) -> Self:
        if (self.target_tokens is None) == (self.epochs is None):
            raise ValueError("give exactly one of target_tokens and epochs")
        return self

    def in_target_tokens(self, targets_per_epoch: int) -> int:
        """Returns the budget in target tokens, given the number of targets in one pass over the training data."""
        if self.target_tokens is not None:
            return self.target_tokens
        assert self.epochs is not None
        return max(1, round(self.epochs * targets_per_epoch))


class TrialSpec(Spec):
    """One configuration. The space of a search varies these fields."""

    method: Method = LoraMethod()
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    batch: BatchSpec = BatchSpec()
    budget: BudgetSpec = BudgetSpec(epochs=3.0)
    precision: Literal["auto"] | Dtype = Field(
        "auto",
        description="Of the forward and backward pass (autocast). `auto`: bf16 where GPUs or CPUs multiply in it, else fp32;"
        " decided when the search begins, by the machine of the driver.",
    )
    dtype: Literal["auto"] | Dtype | None = Field(
        None, description="What the base's weights are kept in for this trial; by default what model.dtype says."
    )
    gradient_checkpointing: bool = Field(False, description="Recompute activations instead of keeping them.")
    seed: Seed = 0

    @property
    def computed_in(self) -> Dtype:
        """Returns the precision. Raises ValueError for `auto`, which is decided when a search begins (precisions.py)."""
        if self.precision == "auto":
            raise ValueError("precision=auto: nothing is computed before it is fp32 or bf16")
        return self.precision

    @model_validator(mode="before")
    @classmethod
    def _default_to_lora(cls, values: Any) -> Any:
        return fill_in_tag(values, "method", "kind", "lora")
