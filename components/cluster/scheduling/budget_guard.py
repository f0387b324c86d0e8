"""Keeps the budget of a search: lets no new trial start that it cannot bring to its first report, and ends what runs."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial

from components.cluster.driver.trial_control import controller_of
from components.cluster.ray_internals.tune import is_queued
from components.cluster.slots.trial_config import TrialConfig


class BudgetGuard:
    """Called at each turn of Tune's loop. Tune pickles it: what it decides by is in the controller of the search."""

    def __init__(self, search_id: str) -> None:
        self._search_id = search_id

    def look(self, tune_controller: Any) -> None:
        controller = controller_of(self._search_id)
        if controller.spending is None:
            return
        controller.end_what_cannot_be_paid()
        for trial in [trial for trial in tune_controller.get_trials() if trial.status == Trial.PENDING]:
            branch = TrialConfig.of(trial).branch
            if is_queued(tune_controller, trial) and not controller.may_start(trial.trial_id, branch):
                tune_controller.stop_trial(trial)
