"""A lock on a file, for storage that is mounted."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path


class FileLock:
    """The kernel's lock on a file. It is released when its process ends, and no other process can take it before."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if it is held."""
        self._file = path.open("w", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Never calls: the kernel's lock cannot be lost."""

    def close(self) -> None:
        self._file.close()
