"""Clones, the trials that people ask for, start before the trials of the search."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ray.tune.experiment import Trial


class CloneQueue:
    """Picks from the trials of a search. `is_clone` tells a clone from a trial that the sampler made."""

    def __init__(self, is_clone: Callable[[Trial], bool]) -> None:
        self._is_clone = is_clone

    def first(self, trials: Iterable[Trial]) -> Trial | None:
        """Returns the clone that has waited longest for a slot, None if no clone waits."""
        return next((trial for trial in trials if trial.status == Trial.PENDING and self._is_clone(trial)), None)
