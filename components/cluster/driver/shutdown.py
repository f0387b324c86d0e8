"""The clean end of a search that is told to end: by Ctrl-C (SIGINT), or by `ray job stop` (SIGTERM).

Trials write an interim checkpoint and leave their slots, no other trial starts, and Tune saves what it knows. All of it
is bounded in time, and a kill in the middle costs no more than a kill: what has been reported is in the journal.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

import ray

INTERIM_SECONDS = 120.0  # for the step that is under way, and the checkpoint after it
AGAIN_SECONDS = 1.0

Told = Callable[[signal.Signals], None]


class GracefulShutdown:
    """A context manager around Tune's loop. The first signal ends it cleanly, a second one does what it did outside.

    `signal` is what came, or None. `told` hears of it at once, in another thread: there may be little time.
    """

    def __init__(self, board: Any, told: Told) -> None:
        self.board, self.told = board, told
        self.signal: signal.Signals | None = None
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        self._before = {number: signal.getsignal(number) for number in numbers}
        signal.signal(signal.SIGINT, self._asked)
        signal.signal(signal.SIGTERM, self._asked)
        signal.signal(signal.SIGUSR1, lambda *_: None)  # until Tune takes it, it would be this program's end
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._give_back()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        """In the main thread, which may be in the middle of a call to Ray: the work is for another thread."""
        if self.signal is not None:
            self._give_back()
            signal.raise_signal(number)
            return
        self.signal = signal.Signals(number)
        self._thread = threading.Thread(target=self._stop, name="clean-stop", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        assert self.signal is not None
        self.told(self.signal)
        left, deadline = self.board.stop.remote(), time.monotonic() + INTERIM_SECONDS
        while time.monotonic() < deadline and not self._ended.is_set():
            if ray.wait([left], timeout=AGAIN_SECONDS)[0]:
                break
        # SIGUSR1 is Tune's word for a graceful end; again and again, because it misses one that comes before its loop.
        os.kill(os.getpid(), signal.SIGUSR1)
        while not self._ended.wait(AGAIN_SECONDS):
            os.kill(os.getpid(), signal.SIGUSR1)

    def _give_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
