"""The end of a search on request: by Ctrl-C, by `ray job stop`, or by the code that started it.

Trials write an interim checkpoint and leave their slots, no other trial starts, and Tune saves its state. All of it is
bounded in time, and a kill in the middle costs no more than any kill: the journal has what was reported.
"""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Any, Self

import ray

from components.records.stop_flag import StopRequest

INTERIM_SECONDS = 120.0  # for the step that is under way, and the checkpoint after it
POLL_SECONDS = 0.2


class GracefulShutdown:
    """A context manager around Tune's loop. Inside, a thread waits for the request.

    Then it lets all trials leave their slots, and sets `interrupt`, which ends the loop (ray_internals/tune_loop.py).
    """

    def __init__(self, board: Any, stop: StopRequest, interrupt: threading.Event) -> None:
        self.board, self.stop, self.interrupt = board, stop, interrupt
        self._loop_ended = threading.Event()
        self._thread = threading.Thread(target=self._wait_for_request, name="graceful-shutdown", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop_ended.set()
        self._thread.join()

    def _wait_for_request(self) -> None:
        while not self.stop.wait(POLL_SECONDS):
            if self._loop_ended.is_set():
                return
        try:
            stopped, deadline = self.board.stop_search.remote(), time.monotonic() + INTERIM_SECONDS
            while time.monotonic() < deadline and not self._loop_ended.is_set():
                if ray.wait([stopped], timeout=POLL_SECONDS)[0]:
                    break
        finally:
            self.interrupt.set()  # also where the board is gone: the loop must end
