"""Trials that have lost their slot, or left it, go on before others begin."""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial

from components.cluster.ray_internals.tune import is_queued, requeue


class ReturningTrials:
    """Those that wait for another slot, in the order in which they came back."""

    def __init__(self) -> None:
        self._waiting: list[Trial] = []

    def add(self, tune_controller: Any, trial: Trial) -> None:
        """Puts a queued trial before all that have not begun, also where Ray looks for places.

        Tune would put it behind them, and they have asked Ray for their places before it: so they ask again.
        """
        self._drop_those_that_run()
        if trial not in self._waiting:
            self._waiting.append(trial)
        for other in list(tune_controller.get_trials()):
            if other not in self._waiting and is_queued(tune_controller, other):
                requeue(tune_controller, other, other.placement_group_factory)

    def first(self) -> Trial | None:
        """Returns the one that has waited longest, None if none waits."""
        self._drop_those_that_run()
        return next(iter(self._waiting), None)

    def _drop_those_that_run(self) -> None:
        self._waiting = [trial for trial in self._waiting if trial.status == Trial.PENDING]
