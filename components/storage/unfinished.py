"""Names of what is half written or half removed. They are hidden: nothing lists them, and the next start removes them."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from components.storage.fsync import fsync_file, fsync_path

SUFFIX = ".unfinished"
LONG_AGO = 86400.0  # seconds: what has not changed for so long, a process has left that has ended


def is_hidden(name: str) -> bool:
    """Whether a name is of no file or folder that was asked for."""
    return name.startswith(".")


def beside(path: Path, *, shared: bool = False) -> Path:
    """Returns a hidden path beside `path` that nobody can foresee. `shared`: the one that all writers of a folder know."""
    unique = "" if shared else f".{uuid.uuid4().hex}"  # another node may have an equal process id
    return path.with_name(f".{path.name}{unique}{SUFFIX}")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Inside, a new file is written beside `path`; it takes that name, durable, unless the block fails.

    It is the file that was opened, never one that a link leads to. Who may read it is for the process's umask to say.
    """
    scratch = beside(path)
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            yield file
            fsync_file(file)
        scratch.replace(path)
        fsync_path(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def remove(folder: Path) -> None:
    """Removes a folder with all that it contains. It is gone at once, or not at all: a kill leaves a hidden rest.

    A missing folder is no error; one that cannot be renamed stays whole.
    """
    if (doomed := set_aside(folder)) is not None:
        shutil.rmtree(doomed, ignore_errors=True)


def set_aside(folder: Path) -> Path | None:
    """Gives a folder that is to be removed a hidden name, and returns it; None if it does not exist or cannot be renamed."""
    doomed = beside(folder)
    try:
        folder.rename(doomed)
    except OSError:
        return None
    return doomed


def remove_rests(folder: Path, *, older_than: float = 0.0) -> None:
    """Removes what ended processes have left half written or half removed in a folder.

    Args:
        older_than: seconds since the last change of its names, where other processes may be writing now.
    """
    for rest in folder.glob(f".*{SUFFIX}"):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - rest.lstat().st_mtime < older_than:
                continue
            if rest.is_dir() and not rest.is_symlink():
                shutil.rmtree(rest)
            else:
                rest.unlink()
