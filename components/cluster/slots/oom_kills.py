"""How many processes the kernel has killed in this process's control group because memory had run out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

OWN, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def oom_kills(own: Path = OWN, groups: Path = GROUPS) -> int | None:
    """Returns the count; None where the system keeps none.

    Args:
        own: names the control groups of this process, as the kernel writes it.
        groups: where they are mounted.
    """
    for file in _files(own, groups):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        for name, _, count in (line.partition(" ") for line in lines):
            if name == "oom_kill" and count.isascii() and count.isdecimal():
                return int(count)
    return None


def _files(own: Path, groups: Path) -> Iterator[Path]:
    """A container may see its own group at the top, whatever path the kernel names."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":  # version 2
            place, name = groups, "memory.events"
        elif "memory" in controllers.split(","):
            place, name = groups / "memory", "memory.oom_control"
        else:
            continue
        yield place / path.lstrip("/") / name
        yield place / name
