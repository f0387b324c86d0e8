"""A lock on a file, for storage that is mounted."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

from components.storage.regular_files import open_own


class FileLock:
    """The kernel's lock on a file. It is released when its process ends, and no other process can take it before."""

    def __init__(self, path: Path) -> None:
        """Raises BlockingIOError if it is held, and StorageError if it is a link or no file."""
        self._file = os.fdopen(open_own(path, os.O_RDWR), "r+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Never calls: the kernel's lock cannot be lost."""

    def close(self) -> None:
        self._file.close()
