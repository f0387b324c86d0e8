"""How far a trial has come, and what happened since its last report. Both are part of its checkpoint."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from components.records.events import StepMetrics


@dataclass(slots=True)
class Counters:
    """Totals since the trial began."""

    step: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    worker_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    evaluation_worker_seconds: float = 0.0
    reported_step: int = 0  # the last report's; 0 before the first
    reported_tokens: int = 0  # what it had spent of its budget at that step


@dataclass(slots=True)
class ReportInterval:
    """Sums over the steps since the last report, over all workers."""

    steps: list[StepMetrics] = field(default_factory=list)
    loss_sum: float = 0.0
    num_targets: int = 0
    num_tokens: int = 0
    seconds: float = 0.0

    def add(self, step: StepMetrics, *, loss_sum: float, num_targets: int, num_tokens: int, seconds: float) -> None:
        self.steps.append(step)
        self.loss_sum += loss_sum
        self.num_targets += num_targets
        self.num_tokens += num_tokens
        self.seconds += seconds

    @property
    def train_loss(self) -> float:
        """Nats per target; NaN before the first step."""
        return self.loss_sum / self.num_targets if self.num_targets else math.nan

    @property
    def tokens_per_second(self) -> float:
        return self.num_tokens / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "steps": [step.model_dump(mode="json") for step in self.steps]}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> ReportInterval:
        return cls(**{**content, "steps": [StepMetrics.model_validate(step) for step in content["steps"]]})
