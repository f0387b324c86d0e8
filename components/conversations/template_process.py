"""A process that renders chat templates, so that one that does not end, or grows without bound, harms no other.

A template is a stranger's program. Jinja's sandbox bounds what it may reach, not how long it computes and how much memory it
takes; only the system does that, for a process of its own. chat_formats/bounded_template.py starts it and asks it.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import struct
import sys
from typing import IO, Any

MAX_MEMORY = 2 * 1024**3  # bytes of the whole process
MAX_LETTERS = 20_000_000  # of one text
LENGTH = struct.Struct("<Q")  # of a message, before it


def write_message(stream: IO[bytes], content: bytes) -> None:
    stream.write(LENGTH.pack(len(content)) + content)
    stream.flush()


def read_message(stream: IO[bytes]) -> bytes | None:
    """Returns the next message; None where the other side has ended."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    content = stream.read(LENGTH.unpack(head)[0])
    return content if len(content) == LENGTH.unpack(head)[0] else None


def _serve(requests: IO[bytes], replies: IO[bytes], max_seconds: float) -> None:
    """Answers each request, a list of {"conversations": ..., ...} as pickle, by a list of replies as JSON.

    A reply is {"text"}, {"refused"} or {"unbounded"}. SIGPROF ends the process, whatever it is doing, if a text takes
    `max_seconds` of processor time.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ctrl-c is for who asks
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    while (request := read_message(requests)) is not None:
        written = []
        for asked in pickle.loads(request):
            signal.setitimer(signal.ITIMER_PROF, max_seconds)
            written.append(_reply(render_jinja_template, asked))
        signal.setitimer(signal.ITIMER_PROF, 0)
        write_message(replies, json.dumps(written).encode())


def _reply(render: Any, request: dict[str, Any]) -> dict[str, str]:
    try:
        (text,), _ = render(**request)
    except MemoryError:
        return {"unbounded": f"takes more than {MAX_MEMORY // 1024**3} GiB of memory"}
    except Exception as error:  # noqa: BLE001 - of a stranger's program
        return {"refused": str(error)[:2000] or type(error).__name__}
    if len(text) > MAX_LETTERS:
        return {"unbounded": f"writes more than {MAX_LETTERS:,} letters"}
    return {"text": text}


if __name__ == "__main__":
    _serve(sys.stdin.buffer, sys.stdout.buffer, float(sys.argv[1]))
