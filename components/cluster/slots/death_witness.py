"""What Train's controller sees of a worker group's death, for the board."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback

from components.cluster.slots.deaths import Evidence

LOW_ON_MEMORY = "running low on memory"  # the reason in Ray's error of an actor that its memory monitor has killed


class DeathWitness(UserCallback):  # type: ignore[misc]
    """It is called in Train's controller, before that starts the next group."""

    def __init__(self, board: Any, slot: str) -> None:
        self._board, self._slot = board, slot

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        with contextlib.suppress(RayError):  # without the board there is no search any more
            ray.get(self._board.note_death.remote(self._slot, _evidence(worker_exceptions)))


def _evidence(exceptions: Mapping[int, Exception]) -> Evidence | None:
    """An error that a worker raised is told by that worker."""
    if any(LOW_ON_MEMORY in str(error) for error in exceptions.values()):
        return Evidence(reason="Ray's memory monitor killed a worker", out_of_memory=True)
    return None
