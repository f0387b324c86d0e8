"""Tune's stopper: ends a trial at its next report, once somebody wants it to end."""

from __future__ import annotations

from typing import Any

from ray.tune import Stopper

from components.cluster.driver.trial_control import controller_of


class ControlledStopper(Stopper):  # type: ignore[misc]
    """Ends a trial at the report that its workers make as soon as a person wants it to end (interruptions.py).

    All of them, once one has failed for a reason that is every other one's, too.
    """

    def __init__(self, search_id: str) -> None:
        self.search_id = search_id

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return controller_of(self.search_id).stop_of(trial_id) is not None

    def stop_all(self) -> bool:
        return controller_of(self.search_id).hopeless is not None
