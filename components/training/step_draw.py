"""What an optimizer step computes, drawn before it begins."""

from __future__ import annotations

from dataclasses import dataclass

from components.data.batch import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDraw:
    """One worker's micro-batches, in CPU memory, and the sizes of the step over all workers.

    `num_tokens` are without padding. `began` is by time.perf_counter.
    """

    began: float
    batches: list[Batch]
    num_targets: int
    num_tokens: int
