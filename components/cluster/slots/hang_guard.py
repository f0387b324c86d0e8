"""Ends the workers of a slot that hang, from outside: a process that is stopped, or waits for one, cannot end itself."""

from __future__ import annotations

import logging
import time
from typing import Any

import ray

log = logging.getLogger(__name__)

ASK_SECONDS = 5.0


class HangGuard:
    """Asks the board now and then, and never waits for it: it may be starting again."""

    def __init__(self, board: Any, slot: str) -> None:
        self._board, self._slot = board, slot
        self._question: Any = None
        self._next = time.monotonic() + ASK_SECONDS
        self._group: list[Any] = []

    def poll(self) -> None:
        """Kills the workers, so that Train starts a new group, if they hang."""
        if self._question is None:
            if time.monotonic() >= self._next:
                self._question = self._board.watched_group.remote(self._slot)
            return
        if not ray.wait([self._question], timeout=0.0)[0]:
            return
        group, hang = ray.get(self._question)
        self._question, self._next = None, time.monotonic() + ASK_SECONDS
        self._group = group or self._group
        if hang:
            log.warning("the workers of slot %s hang: they are ended, and the trial goes on with new ones", self._slot)
            for worker in self._group:
                ray.kill(worker)
