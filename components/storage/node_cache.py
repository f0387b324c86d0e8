"""This node's own disk: copies of what lies on the storage, made once for all processes of the node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


def cache_folder() -> Path:
    """TURNWISE_CACHE, or a folder of the user's."""
    return Path(os.environ.get("TURNWISE_CACHE") or "~/.cache/turnwise").expanduser().absolute()


def copy_of(key: str) -> Path:
    """Where the copy of what the key says lies, or would lie."""
    return cache_folder() / "copies" / key


def get_or_create(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, filled by `make` if no process of this node has done so; the others wait for it."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
                make(Path(scratch))
                move_into_place(Path(scratch), target)
    return target


def move_into_place(scratch: Path, target: Path) -> None:
    """What `scratch` holds becomes `target`; a cache that several nodes share may have it by now."""
    holds = scratch / "whole"
    holds.mkdir()
    for entry in [path for path in scratch.iterdir() if path != holds]:
        entry.rename(holds / entry.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        holds.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process of this node at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def new_scratch() -> Path:
    """An empty folder for what is on its way to the storage. Those that dead processes of this machine left are removed."""
    folder = cache_folder() / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{socket.gethostname()}.*.*"):
        if not is_running(int(old.name.rsplit(".", 2)[1])):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=folder, prefix=f"{socket.gethostname()}.{os.getpid()}."))


def is_running(process: int) -> bool:
    """Whether this machine has a process of that id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
