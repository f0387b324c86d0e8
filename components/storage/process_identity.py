"""Which process is meant by a number, and whether it is known to have ended.

A process id means something only within one boot of one machine, and within one process space: two containers on a machine
may have equal host names and equal ids, and neither sees the other's processes.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

BOOT_ID, PROCESS_SPACE = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")


@functools.cache
def process_space() -> dict[str, str]:
    """Returns the host's name, and the marks of its boot and of this process's space; empty where the system has none."""
    return {"host": socket.gethostname(), "boot": _boot(), "space": _space()}


def space_mark() -> str:
    """Returns twelve letters that only processes of this space have."""
    return hashlib.sha256("\n".join(process_space().values()).encode()).hexdigest()[:12]


def has_ended(process: Mapping[str, Any]) -> bool:
    """Whether it is certain that a process has ended, by its `process` and the facts of process_space().

    A process of another machine, boot or space may live: nobody here can see it.
    """
    own = process_space()
    if not own["boot"] or not own["space"] or any(process.get(key) != value for key, value in own.items()):
        return False
    number = process.get("process")
    return isinstance(number, int) and not is_running(number)


def is_running(process: int) -> bool:
    """Whether this process's space has a process with that id."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str:
    try:
        return BOOT_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _space() -> str:
    try:
        return str(PROCESS_SPACE.readlink())
    except OSError:
        return ""
