"""What trials are ranked by, and where it is better: part of the section `search:`, and of every report."""

from __future__ import annotations

from typing import Literal

from components.experiment.spec.section import Spec


class MetricSpec(Spec):
    """A number that every evaluation of a trial gives."""

    name: str = "eval_loss"
    direction: Literal["minimize", "maximize"] = "minimize"

    def to_minimize(self, value: float) -> float:
        """Returns the value, with its sign turned where more is better: what every ranking sorts by, ascending."""
        return value if self.direction == "minimize" else -value
