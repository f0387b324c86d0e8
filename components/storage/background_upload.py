"""What goes to the storage beside the training."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Uploads:
    """One at a time, in a thread: whoever begins the next one waits for the one before."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._running: Future[None] | None = None

    def begin(self, upload: Callable[[], None]) -> None:
        """Raises what the upload before has raised."""
        self.wait()
        self._running = self._thread.submit(upload)

    def wait(self) -> None:
        """Until nothing is on its way. Raises, once, what the last upload has raised."""
        running, self._running = self._running, None
        if running is not None:
            running.result()
