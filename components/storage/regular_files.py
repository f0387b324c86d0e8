"""Files that others may have put there: opened only if they are regular, so that nothing waits or leads elsewhere."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from components.storage.retry import StorageError


def open_own(path: Path, flags: int) -> int:
    """Opens a file for this process's own use, by os.open; creates it, for as many readers as the umask lets.

    Raises StorageError for a link or anything else that is no file: a name that others can foresee is theirs to make.
    """
    try:
        opened = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError:
        if path.is_symlink():
            raise StorageError(f"{path}: is a link, and must be a file of its own; delete it") from None
        raise
    if not stat.S_ISREG(os.fstat(opened).st_mode):
        os.close(opened)
        raise StorageError(f"{path}: is no regular file; delete it")
    return opened


def read_small(path: Path, max_bytes: int) -> bytes:
    """Reads a file of at most `max_bytes`. Raises ValueError if it is larger, a link, or no regular file."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"is a {kind_of(found.st_mode)}, and must be a regular file")
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("is no regular file")  # it has changed meanwhile
        content = file.read(max_bytes + 1)
    check_small(len(content), max_bytes)
    return content


def check_small(size: int, max_bytes: int) -> None:
    """Raises ValueError if a file of so many bytes is too large."""
    if size > max_bytes:
        raise ValueError(f"has more than the {max_bytes:,} bytes that such a file may have")


def kind_of(mode: int) -> str:
    """Returns what a file's mode says that it is, for people."""
    kinds = {
        stat.S_IFDIR: "folder",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "named pipe",
        stat.S_IFSOCK: "socket",
        stat.S_IFCHR: "device",
        stat.S_IFBLK: "device",
    }
    return kinds.get(stat.S_IFMT(mode), "regular file")
