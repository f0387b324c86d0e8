"""Files from outside: whatever a library raises while it reads one becomes one sentence for people."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.errors import InputError, TurnwiseError
from components.storage.excerpt import excerpt

MAX_REASON = 200  # letters
MAX_JSON_BYTES = 64 * 2**20  # a description: the largest shard index known is 2 MB
RUST_PANIC = "PanicException"  # of tokenizers and safetensors; no class that could be imported, and no Exception
OUT_OF_MEMORY = "OutOfMemoryError"  # torch's, of a GPU: the file may be well


@contextlib.contextmanager
def explain_foreign(place: object, what: str = "cannot be read", way_out: str = "") -> Iterator[None]:
    """Inside, every error of a library is an InputError: `PLACE: WHAT (REASON); WAY OUT`.

    Errors for users pass as they are, and so does a GPU without memory. The library's own error stays the cause.
    """
    try:
        yield
    except TurnwiseError:
        raise
    except BaseException as error:
        kind = type(error).__name__
        if kind == OUT_OF_MEMORY or not (isinstance(error, Exception) or kind == RUST_PANIC):
            raise
        raise InputError(f"{place}: {what} ({reason_of(error)}){f'; {way_out}' if way_out else ''}") from error


def reason_of(error: BaseException) -> str:
    """Returns what an error says, on one line that fits a terminal."""
    match error:
        case ValidationError():
            first = error.errors(include_url=False, include_input=False)[0]
            text = ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
        case UnicodeDecodeError():
            text = f"byte {error.start + 1} is not UTF-8"
        case json.JSONDecodeError():
            text = f"not JSON: {error}"
        case RecursionError():
            text = "nested too deeply"
        case KeyError():
            text = f"{error} is missing"
        case OSError() if error.strerror:
            text = error.strerror
        case _:
            text = str(error) or type(error).__name__
    line = " ".join(text.split())
    return excerpt(line, MAX_REASON)


def read_description(file: Path) -> str:
    """Returns the text of a small file. Raises InputError if it is none, or not UTF-8, or too large for what it should be."""
    with explain_foreign(file):
        if not file.is_file():  # a pipe would never end
            raise InputError(f"{file}: {'is no file' if file.exists() else 'there is no such file'}")
        if (size := file.stat().st_size) > MAX_JSON_BYTES:
            raise InputError(f"{file}: has {size:,} bytes, and a file of its kind at most {MAX_JSON_BYTES:,}")
        return file.read_text(encoding="utf-8")


def read_object(file: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises InputError if it holds something else; see read_description."""
    with explain_foreign(file):
        content = json.loads(read_description(file))
    if not isinstance(content, dict):
        raise InputError(f"{file}: must hold one JSON object, not a {type(content).__name__}")
    return content
