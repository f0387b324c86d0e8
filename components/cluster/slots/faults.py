"""Faults that end a worker's process, as a segmentation fault does: written down by Python as it dies, read by the next one.

Ray does not say by which signal a worker died. Python's faulthandler does, with the line that it was at.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from components.cluster.private_session import session_folder
from components.errors import InputError
from components.storage.process_identity import is_running
from components.storage.unfinished import LONG_AGO

log = logging.getLogger(__name__)

HEAD, FRAME = re.compile(r"Fatal Python error: (.+)"), re.compile(r'^  File "(.+)", line (\d+) in (.+)$', re.MULTILINE)
ABORTED = "Aborted"


def take_faults(slot: str) -> list[str]:
    """Returns the faults that have ended processes of this slot on this node, in words, once. The log gets them whole."""
    try:
        files = [file for file in _folder().glob(f"{slot}.*") if not is_running(int(file.suffix[1:]))]
        texts = [_take(file) for file in files]
    except (OSError, InputError) as error:
        log.warning("what has ended an earlier worker is not known: %s", error)
        return []
    for text in filter(None, texts):
        log.error("an earlier worker process of this slot has ended by a fault:\n%s", text)
    return [words for words in map(fault_in_words, texts) if words]


@contextlib.contextmanager
def noting_faults(slot: str) -> Iterator[None]:
    """Inside, a fault of this process is written to a file of this slot on this node, instead of to stderr."""
    try:
        path = _folder() / f"{slot}.{os.getpid()}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except (OSError, InputError) as error:
        log.warning("a fault of this worker would not be noted: %s", error)
        yield
        return
    faulthandler.enable(file=file, all_threads=False)
    try:
        yield
    finally:
        faulthandler.enable(all_threads=False)
        os.close(file)
        path.unlink(missing_ok=True)


def fault_in_words(text: str) -> str | None:
    """Returns e.g. `Segmentation fault in score (tone.py, line 3)`; None if the process is not to blame.

    torch's watchdogs abort the process, from threads that are not Python's, when another worker has died.
    """
    head, frame = HEAD.search(text), FRAME.search(text)
    if head is None or (head[1] == ABORTED and frame is None):
        return None
    return head[1] if frame is None else f"{head[1]} in {frame[3]} ({frame[1]}, line {frame[2]})"


def _folder() -> Path:
    """It is on the node's own disk, for its user's eyes alone. Files that slots have left long ago are removed."""
    folder = session_folder() / "faults"
    folder.mkdir(mode=0o700, exist_ok=True)
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - file.stat().st_mtime > LONG_AGO and not is_running(int(file.suffix[1:])):
                file.unlink()
    return folder


def _take(file: Path) -> str:
    """Returns the content; nothing if another worker of this node has taken it."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        file.unlink()
    except FileNotFoundError:
        return ""
    return text
