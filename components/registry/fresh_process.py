"""A new Python process for a version's own code. It may be started ahead, and imports libraries while there is no work yet.

These imports take ten seconds and more, as long as the proof of a small model itself. A search starts the process when it
begins to make the version that will be proven.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from components.registry import fresh_worker
from components.registry.library_path import library_path

_LOCK = threading.Lock()
_ahead: list[FreshProcess] = []  # at most one


class FreshProcess:
    """It has this process' environment and libraries, and none of its modules."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", fresh_worker.__file__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(library_path())},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, module: str, arguments: Sequence[str], timeout_seconds: float) -> tuple[int, str]:
        """Runs a module as `python -m` does in a working directory. Returns its exit status and its standard error.

        Called once. Raises subprocess.TimeoutExpired when it has ended the process, whose time is up.
        """
        work = {"folder": str(folder.absolute()), "module": module, "arguments": list(arguments)}
        try:
            _, stderr = self._process.communicate(json.dumps(work) + "\n", timeout=timeout_seconds)
        finally:
            self.end()
        return self._process.returncode, stderr

    def is_waiting(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """Also one that waits for its work."""
        with self._process:  # closes the pipes, and waits
            self._process.kill()


def begin_ahead() -> None:
    """Starts the process that the next `take` returns, in place of one before, unless the system has no room for it."""
    drop_ahead()
    with _LOCK, contextlib.suppress(OSError):
        _ahead.append(FreshProcess())


def take() -> FreshProcess:
    """The process that was started ahead, else one that starts now."""
    with _LOCK:
        process = _ahead.pop() if _ahead else FreshProcess()
    if process.is_waiting():
        return process
    process.end()
    return FreshProcess()


def drop_ahead() -> None:
    """Ends a process that was started ahead and that nobody took."""
    with _LOCK:
        while _ahead:
            _ahead.pop().end()
