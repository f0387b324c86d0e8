"""Tune's stopper: ends a trial at its next report, once a person has asked for that."""

from __future__ import annotations

from typing import Any

from ray.tune import Stopper

from components.cluster.driver.trial_control import controller_of


class ControlledStopper(Stopper):  # type: ignore[misc]
    """Ends a trial at the report that its workers make as soon as a person has asked for its end (slots/slot_signals.py).

    Ends all trials once one has failed for a reason that holds for every other trial, too.
    """

    def __init__(self, search_id: str) -> None:
        self.search_id = search_id

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return controller_of(self.search_id).stop_of(trial_id) is not None

    def stop_all(self) -> bool:
        return controller_of(self.search_id).fatal_error is not None
