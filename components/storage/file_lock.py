"""A lock on a file, for storage that is mounted."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import IO


def file_lock(path: Path) -> IO[str]:
    """Takes the kernel's lock on a file. It is released when its process ends. Raises BlockingIOError if it is held."""
    file = path.open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise
    return file
