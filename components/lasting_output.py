"""Output that may lose its reader: `| head`, a `tee` that is killed, a terminal that is closed. What is running goes on."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, TextIO

GONE = {errno.EPIPE, errno.EIO, errno.ENXIO}  # of a pipe, of a terminal that is closed, of one that never was


class LastingStream:
    """A text stream that is silent from the moment that nobody reads it: its descriptor leads nowhere then, for everybody."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._lasting():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lasting():
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in GONE:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Inside, stdout and stderr may lose their reader, and the terminal may be closed: neither ends the process.

    A hang-up is ignored as under nohup, so that the processes that are started inside survive it, too.
    """
    before = sys.stdout, sys.stderr
    in_main = threading.current_thread() is threading.main_thread()
    hang_up = signal.signal(signal.SIGHUP, signal.SIG_IGN) if in_main else None
    sys.stdout, sys.stderr = LastingStream(sys.stdout), LastingStream(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
        if in_main:
            signal.signal(signal.SIGHUP, hang_up)
