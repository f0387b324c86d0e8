"""Who may read a file: what the process's umask says, also where a library has kept the file for its writer."""

from __future__ import annotations

import os
from pathlib import Path


def readable_as_usual(file: Path) -> None:
    """Gives a file the mode that this process's new files have. safetensors lets only its writer read a file."""
    file.chmod(0o666 & ~_umask())


def _umask() -> int:
    """Read without setting it: another thread may be creating a file now."""
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else ():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    mask = os.umask(0o077)  # a system that does not say it
    os.umask(mask)
    return mask
