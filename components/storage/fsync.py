"""Forces what was written to the disk itself, so that it survives a power failure."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any


def fsync_file(file: IO[Any]) -> None:
    file.flush()
    os.fsync(file.fileno())


def write_all(file: IO[bytes], content: bytes) -> None:
    """Writes to a file without a buffer, which may take less than it is given: all that fits on a full disk."""
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def fsync_path(path: Path) -> None:
    """Forces a file's content, or a folder's names: a new file is durable only when its folder has been synced too."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def fsync_tree(folder: Path) -> None:
    """Forces every file in a folder, whichever process of this machine wrote it."""
    for path in [*folder.rglob("*"), folder]:
        fsync_path(path)


def fsync_folders(folder: Path) -> None:
    """Forces the names of all that is in a folder."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            fsync_path(path)
