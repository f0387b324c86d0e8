"""One driver at a time."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO, Protocol


class Lock(Protocol):
    """A lock that is held until it is closed, or forgotten."""

    def close(self) -> None: ...


def file_lock(path: Path) -> IO[str]:
    """The kernel's lock on a file: it ends with its process, however that ends. Raises BlockingIOError if it is held."""
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
