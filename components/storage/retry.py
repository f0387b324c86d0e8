"""Retries while an object store is unreachable, and tells errors that may pass from those that will not."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from components.errors import TurnwiseError

T = TypeVar("T")

MAX_RETRY_SECONDS = 300.0
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 15.0
# Errors of a store that has understood the request: a retry would get the same answer.
PERMANENT_ERRORS = (
    "ACCESS_DENIED",
    "NO_SUCH_BUCKET",
    "INVALID_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH",
    "Permission denied",
    "' not found",  # the answer to a request for a missing bucket's region
)
# One answer for many keys, which is a success but for those it names, by S3's words alone.
UNDELETED = re.compile(r"errors when deleting objects in S3 bucket")
DENIED_KEY = re.compile(r"^- key '(?P<key>.*)': .*(?:Access ?Denied|not authorized)", re.MULTILINE)


class StorageError(TurnwiseError, OSError):
    """The storage has refused a request, or was unreachable for MAX_RETRY_SECONDS."""


def with_retries(request: Callable[[], T], location: str) -> T:
    """Returns what `request` returns; repeats it for at most MAX_RETRY_SECONDS while the storage is unreachable.

    Raises FileNotFoundError as it is, and StorageError for an error that a retry does not help.
    """
    deadline = time.monotonic() + MAX_RETRY_SECONDS
    for pause in _pauses():
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError as error:
            if isinstance(error, StorageError) or is_permanent(error):
                raise StorageError(f"{location}: {describe_error(error)}") from None
            if time.monotonic() + pause > deadline:
                waited = f"the storage has been away for {MAX_RETRY_SECONDS:.0f} seconds"
                raise StorageError(
                    f"{location}: {waited} ({describe_error(error)}); when it is back, the same command goes on"
                ) from None
        time.sleep(pause)
    raise AssertionError("pauses never end")


def is_permanent(error: OSError) -> bool:
    text = str(error)
    return (
        isinstance(error, PermissionError) or bool(_denied_key(text)) or any(word in text for word in PERMANENT_ERRORS)
    )


def describe_error(error: OSError) -> str:
    """Returns the error in one line; of an AWS error its name and message, without the request's id."""
    if key := _denied_key(str(error)):
        return f"ACCESS_DENIED: {key} may not be deleted; give this machine the right to it (s3:DeleteObject)"
    text = " ".join(str(error).split())
    text = re.sub(r"\s*\(Request ID: [^)]*\)", "", text)
    aws = re.search(r"AWS Error (\w+) during \w+ operation: (.*)", text)
    return f"{aws[1]}: {aws[2]}" if aws else text


def _denied_key(text: str) -> str:
    """Returns the first key of several that S3 does not let this machine delete; "" if the error is another one."""
    denied = DENIED_KEY.search(text) if UNDELETED.search(text) else None
    return denied["key"] if denied else ""


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE_SECONDS
    while True:
        yield pause
        pause = min(2 * pause, MAX_PAUSE_SECONDS)
