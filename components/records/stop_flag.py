"""A request to end a running search early, from any thread or from a signal handler."""

from __future__ import annotations

import threading


class StopRequest:
    """The search writes checkpoints, ends, and can be resumed. `reason` is why, e.g. SIGTERM; None before the request."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self._requested = threading.Event()

    def request(self, reason: str) -> None:
        """Only the first request counts."""
        if not self._requested.is_set():
            self.reason = reason
            self._requested.set()

    def wait(self, seconds: float) -> bool:
        """Whether the request has come, after at most so many seconds."""
        return self._requested.wait(seconds)
