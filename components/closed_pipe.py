"""How a program that only prints ends when its reader goes away, as in `preview.py ... | head`: as the system's own do."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator


@contextlib.contextmanager
def ends_without_reader() -> Iterator[None]:
    """Inside, output that nobody reads any more ends the process without a word: 141 in a shell."""
    try:
        yield
    except BrokenPipeError:
        end_by_sigpipe()


def end_by_sigpipe() -> None:
    """Python ignores this signal, since a program must outlive a server that hangs up; output is another thing."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
