"""What one branch of a search will need, as plain records: made by planner.py, shown by plan_tables.py."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from components.planning.calibrate import Calibration
from components.planning.memory import MemoryPlan


class PlanRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(PlanRecord):
    """From `low`, where each rung of the scheduler passes its share of trials, to `high`: every trial runs to its end."""

    low: float
    high: float

    def times(self, factor: float) -> Span:
        return Span(low=self.low * factor, high=self.high * factor)


class NodeFit(PlanRecord):
    """A branch on one kind of machine. Hours are of GPUs, over all workers and trials (on a CPU: of workers)."""

    node: str
    room_bytes: int = Field(description="For one worker.")
    short_bytes: int = Field(description="How much does not fit; 0 if all does.")
    hours: Span | None = Field(None, description="Unknown on a CPU that was not measured.")
    dollars: Span | None = None
    spot_dollars: Span | None = None

    @property
    def fits(self) -> bool:
        return self.short_bytes == 0


class Remedy(PlanRecord):
    """Changes on top of one another, and the memory that a worker needs with all of them."""

    changes: tuple[str, ...]
    total_bytes: int
    fits_on: tuple[str, ...]


class BranchPlan(PlanRecord):
    """A branch of the search at the corner that takes most memory."""

    branch: str
    base: str = Field("", description="Its base model, as it was written.")
    method: str
    corner: dict[str, object] = Field(description="What the search would draw there: dotted path -> value.")
    workers: int
    parallel: str
    parameters: int
    trained_parameters: int
    memory: MemoryPlan
    proof: MemoryPlan = Field(description="Of the process that verifies a winner of this branch.")
    rows: int = Field(description="Of the largest micro-batch.")
    tokens: int = Field(description="In each of its rows, padding counted.")
    trials: int
    tokens_per_trial: int = Field(description="Computed in training, over all workers, padding counted.")
    flops_per_token: float
    search_tokens: Span
    fits: tuple[NodeFit, ...]
    remedies: tuple[Remedy, ...] = ()
    calibration: Calibration | None = None

    @property
    def fits_somewhere(self) -> bool:
        return any(fit.fits for fit in self.fits)
