"""A scheduler for Tune whose rules decide from the journal: nothing of it is lost when a search is resumed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from components.cluster.driver.trial_control import controller_of
from components.cluster.scheduling.comparable import EndingRule
from components.cluster.slots.slot_result import SlotResult


class JournalScheduler(FIFOScheduler):  # type: ignore[misc]
    """Ends a trial at a report if one of the rules does. It decides about reports alone."""

    def __init__(self, *, search_id: str, rules: Sequence[EndingRule]) -> None:
        super().__init__()
        self._search_id, self.rules = search_id, tuple(rules)

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, Any]) -> str:
        controller, report = controller_of(self._search_id), SlotResult.of(result).progress
        for rule in self.rules:
            if report is not None and rule.stops(controller.histories, trial.trial_id, report):
                controller.reasons[trial.trial_id] = rule.reason
                return str(TrialScheduler.STOP)
        return str(TrialScheduler.CONTINUE)

    def on_trial_error(self, tune_controller: object, trial: Trial) -> None:
        """Tune gives a trial up whose slot is lost while it is handed over; it is no fault of the trial."""
        if trial.status == Trial.PENDING:
            controller_of(self._search_id).note_lost_start(trial.trial_id)
