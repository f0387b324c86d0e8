"""What Train's controller sees of a worker group's death, for the board."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError
from ray.train import UserCallback

from components.cluster.slots.deaths import Evidence

LOW_ON_MEMORY = "running low on memory"  # in Ray's errors about processes that its memory monitor has killed


class DeathWitness(UserCallback):  # type: ignore[misc]
    """It is called in Train's controller, before that starts the next group."""

    def __init__(self, board: Any, slot: str) -> None:
        self._board, self._slot = board, slot

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        with contextlib.suppress(RayError):  # without the board there is no search any more
            ray.get(self._board.note_death.remote(self._slot, evidence_in(worker_exceptions.values())))


def evidence_in(errors: Iterable[BaseException | None]) -> Evidence | None:
    """Returns what Ray's errors say; None if they say no more than that a process is gone.

    An error that a worker raised is known from that worker.
    """
    if any(LOW_ON_MEMORY in str(error) for error in errors):
        return Evidence(reason="Ray's memory monitor killed processes of its node", out_of_memory=True)
    return None
