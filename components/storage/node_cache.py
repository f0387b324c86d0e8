"""The cache on a node's own disk: copies of remote files, made once for all processes of the node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from components.storage.process_identity import is_running, space_mark
from components.storage.regular_files import open_own
from components.storage.unfinished import LONG_AGO


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
            with scratch_for(target) as scratch:
                make(scratch)
                move_into_place(scratch, target)
    return target


@contextlib.contextmanager
def scratch_for(target: Path) -> Iterator[Path]:
    """Inside, an empty folder beside `target`. Removes those that killed processes have left: call it in its node_lock."""
    prefix = f".{target.name}."
    for rest in target.parent.glob(f"{prefix}*"):
        shutil.rmtree(rest, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=prefix) as scratch:
        yield Path(scratch)


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
    with os.fdopen(open_own(path, os.O_RDWR), "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def new_scratch() -> Path:
    """Returns an empty folder for files to be uploaded. Deletes those of processes that have ended."""
    folder = cache_folder() / "outbox"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if _is_left(old):
                shutil.rmtree(old)
    return Path(tempfile.mkdtemp(dir=folder, prefix=f"{space_mark()}.{os.getpid()}."))


def _is_left(scratch: Path) -> bool:
    """Whether a scratch folder's process has ended. Of another container's or machine's nothing but the age is known."""
    space, _, rest = scratch.name.partition(".")
    process = rest.partition(".")[0]
    if space == space_mark() and process.isascii() and process.isdecimal():
        return not is_running(int(process))
    return time.time() - scratch.stat().st_mtime > LONG_AGO
