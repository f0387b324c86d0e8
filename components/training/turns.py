"""Threads that take turns, in the order in which they ask: none is passed over, as it may be with a lock of Python's."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator


class Turns:
    """A thread that has the turn must not ask again before it has ended."""

    def __init__(self) -> None:
        self._queue: deque[threading.Event] = deque()  # the first one has the turn
        self._changing = threading.Lock()

    @contextlib.contextmanager
    def mine(self) -> Iterator[None]:
        """Waits for this thread's turn. Inside, it is the only one."""
        turn = threading.Event()
        with self._changing:
            self._queue.append(turn)
            if len(self._queue) == 1:
                turn.set()
        turn.wait()
        try:
            yield
        finally:
            with self._changing:
                self._queue.popleft()
                if self._queue:
                    self._queue[0].set()
