"""What has been written is on the disk itself, and survives a machine that loses its power."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO


def to_disk(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def path_to_disk(path: Path) -> None:
    """A file's content; or the names in a folder: a new file is there for good only when its folder is on disk too."""
    opened = os.open(path, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)


def tree_to_disk(folder: Path) -> None:
    """All that lies in it, by whatever process of this machine it was written."""
    for path in [*folder.rglob("*"), folder]:
        path_to_disk(path)
