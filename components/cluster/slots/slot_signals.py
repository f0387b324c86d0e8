"""Why a worker's trial leaves its slot, or reports early: the search stops, a node will go, or a person stops the trial.

The training loop asks after every optimizer step, so the answers are local. What the board knows (the search's stop, and
trials that people stop) reaches the first worker by its threads. The notice that a node will be taken (Ray calls the node
draining) is put into each worker by Ray Train's watcher (ray_internals/train.py).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError

from components.cluster.ray_internals.train import preemption_notice
from components.cluster.slots.slot_result import ExitReason
from components.training.pace import Pace


class SlotSignals:
    """Each worker has one; only the first worker's talks with the board, and tells it how the trial gets on."""

    def __init__(
        self, board: Any, slot: str, pace: Pace, *, first: bool, gone: Callable[[], bool] = lambda: False
    ) -> None:
        """`gone`: whether the slot has died, while its workers, which are another slot's, go on."""
        self._pace, self._gone, self._closed = pace, gone, False
        self._search_stops = threading.Event()
        self._stop_requests: frozenset[str] = frozenset()
        if first:
            threading.Thread(target=self._wait_for_stop, args=(board, slot), name="search-stop", daemon=True).start()
            threading.Thread(target=self._collect_requests, args=(board,), name="stop-requests", daemon=True).start()

    def must_leave(self) -> bool:
        """Whether the trial leaves its slot before its next report."""
        return self._search_stops.is_set() or self._gone() or preemption_notice()

    def close(self) -> None:
        """Nobody asks any more."""
        self._closed = True

    @property
    def exit_reason(self) -> ExitReason:
        """Valid on the first worker, once all workers have agreed to leave."""
        return ExitReason.STOP if self._search_stops.is_set() else ExitReason.PREEMPTED

    def must_report(self, trial_id: str) -> bool:
        """Whether a person has stopped this trial, so that it reports after the step that it is at."""
        return trial_id in self._stop_requests

    def _wait_for_stop(self, board: Any, slot: str) -> None:
        # The search ends if its board dies; this thread adds nothing to that.
        with contextlib.suppress(RayError):
            while not self._closed:
                if ray.get(board.wait_for_stop.remote(slot, self._pace.read())):
                    self._search_stops.set()
                    return

    def _collect_requests(self, board: Any) -> None:
        with contextlib.suppress(RayError):
            while not self._closed:
                self._stop_requests = frozenset(ray.get(board.stop_requests.remote(len(self._stop_requests))))
