"""What an object store's errors mean: wait and ask again, or never."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 300.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 15.0
# What a store says when it has understood, and will answer the same for ever.
FINAL = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "Permission denied",
    "' not found",  # a bucket whose region was asked for
)


class StorageError(OSError):
    """The storage has refused, or was away for longer than our patience. The text is for people."""


def with_retries(do: Callable[[], T], place: str) -> T:
    """What `do` returns; while the storage is away it is done again and again, for at most PATIENCE_SECONDS.

    Raises FileNotFoundError as it is, and StorageError for whatever waiting does not help.
    """
    gives_up = time.monotonic() + PATIENCE_SECONDS
    for pause in _pauses():
        try:
            return do()
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, StorageError) or is_final(error):
                raise StorageError(f"{place}: {reason_of(error)}") from None
            if time.monotonic() + pause > gives_up:
                waited = f"the storage has been away for {PATIENCE_SECONDS:.0f} seconds"
                raise StorageError(
                    f"{place}: {waited} ({reason_of(error)}); when it is back, go on with --resume"
                ) from None
        time.sleep(pause)
    raise AssertionError("pauses never end")


def is_final(error: OSError) -> bool:
    return isinstance(error, PermissionError) or any(word in str(error) for word in FINAL)


def reason_of(error: OSError) -> str:
    """In a line: of an AWS error its name and message, without the request's number."""
    text = " ".join(str(error).split())
    text = re.sub(r"\s*\(Request ID: [^)]*\)", "", text)
    aws = re.search(r"AWS Error (\w+) during \w+ operation: (.*)", text)
    return f"{aws[1]}: {aws[2]}" if aws else text


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
