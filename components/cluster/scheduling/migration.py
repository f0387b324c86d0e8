"""Trials that leave their slot between two reports, and continue in another one.

Tune itself has two ways out of a slot: a pause, after which Tune hands the slot to the next trial, and a failure, which
Tune counts. A slot whose node is about to go must end, and no trial has failed.
"""

from __future__ import annotations

from collections.abc import Iterator

from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial

from components.cluster.slots.slot_result import ExitReason, SlotResult


class Migration:
    """The trials that are leaving their slots, each with the placement that it gets next."""

    def __init__(self) -> None:
        self._leaving: dict[Trial, PlacementGroupFactory] = {}

    def takes(self, trial: Trial, result: SlotResult) -> bool:
        """Whether a result says that the trial trains no further in its slot; then it is no report.

        A preempted trial keeps its placement. A trial whose search ends is not queued again.
        """
        if result.exit_reason is ExitReason.PREEMPTED:
            self.leave(trial, trial.placement_group_factory)
        return result.exit_reason is not None

    def leave(self, trial: Trial, placement: PlacementGroupFactory) -> None:
        """Notes that a trial continues with this placement, once Tune has its checkpoint."""
        self._leaving[trial] = placement

    def ready(self) -> Iterator[tuple[Trial, PlacementGroupFactory]]:
        """Yields, once each, the trials that can be queued again. A trial that has ended meanwhile is dropped."""
        for trial in [trial for trial in self._leaving if not trial.is_saving]:
            placement = self._leaving.pop(trial)
            if not trial.is_finished():
                yield trial, placement
