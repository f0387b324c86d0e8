"""Uploads that run while the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class BackgroundUpload:
    """Runs one upload at a time, in a thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._running: Future[None] | None = None

    def start(self, upload: Callable[[], None]) -> None:
        """Waits for the upload before, and raises its error if it failed."""
        self.wait()
        self._running = self._thread.submit(upload)

    def wait(self) -> None:
        """Waits until no upload is running. Raises, once, the last upload's error."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
