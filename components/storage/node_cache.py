"""The cache on a node's own disk: copies of remote files, made once for all processes of the node."""

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
    """Returns the folder that TURNWISE_CACHE names, or ~/.cache/turnwise."""
    return Path(os.environ.get("TURNWISE_CACHE") or "~/.cache/turnwise").expanduser().absolute()


def copy_path(key: str) -> Path:
    """Returns where the cache keeps the copy with this key, whether or not it exists."""
    return cache_folder() / "copies" / key


def get_or_create(target: Path, make: Callable[[Path], None]) -> Path:
    """Returns `target`, filled by `make` unless a process of this node has done so. Other processes wait meanwhile."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with node_lock(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
                make(Path(scratch))
                move_into_place(Path(scratch), target)
    return target


def move_into_place(scratch: Path, target: Path) -> None:
    """Moves the content of `scratch` to `target`. If several nodes share the cache, another one may have been faster."""
    content = scratch / "whole"
    content.mkdir()
    for entry in [path for path in scratch.iterdir() if path != content]:
        entry.rename(content / entry.name)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        content.rename(target)
    except OSError:
        if not target.is_dir():
            raise


@contextlib.contextmanager
def node_lock(path: Path) -> Iterator[None]:
    """Lets one process of this node in at a time."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def new_scratch() -> Path:
    """Returns an empty folder for files to be uploaded. Deletes those of this machine's processes that have ended."""
    folder = cache_folder() / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{socket.gethostname()}.*.*"):
        if not is_running(int(old.name.rsplit(".", 2)[1])):
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=folder, prefix=f"{socket.gethostname()}.{os.getpid()}."))


def is_running(process: int) -> bool:
    """Whether this machine has a process with that id."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
