"""Why a worker's trial should leave its slot before its next report: the search is to end, or a node is about to go.

Asked after every optimizer step, so it only looks at what others have put there: the search's end comes over the board to
the first worker; the notice that a node will be taken (Ray calls it draining) is put into each worker by Ray Train's
watcher (ray_internals/train.py).
"""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import ray
from ray.exceptions import RayError

from components.cluster.ray_internals.train import preemption_notice
from components.cluster.slots.slot_result import ExitReason


class Interruptions:
    """Each worker has one; only the first one's listens to the board."""

    def __init__(self, board: Any, slot: str, *, first: bool) -> None:
        self._stopping = threading.Event()
        self._ended: frozenset[str] = frozenset()
        if first:
            threading.Thread(target=self._listen, args=(board, slot), name="interruptions", daemon=True).start()
            threading.Thread(target=self._listen_for_ends, args=(board,), name="ends", daemon=True).start()

    def __call__(self) -> bool:
        return self._stopping.is_set() or preemption_notice()

    @property
    def reason(self) -> ExitReason:
        """Once the workers have agreed to leave: of a search that ends, the first worker knows."""
        return ExitReason.STOP if self._stopping.is_set() else ExitReason.PREEMPTED

    def ends(self, trial_id: str) -> bool:
        """Whether a person wants this trial to end (directing.py)."""
        return trial_id in self._ended

    def _listen(self, board: Any, slot: str) -> None:
        # A board that has died ends its search; this thread has nothing to add.
        with contextlib.suppress(RayError):
            while not ray.get(board.stopping.remote(slot)):
                pass
            self._stopping.set()

    def _listen_for_ends(self, board: Any) -> None:
        with contextlib.suppress(RayError):
            while True:
                self._ended = frozenset(ray.get(board.ended.remote(len(self._ended))))
