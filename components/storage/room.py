"""When a disk is full a writer waits for room; when it takes no writes at all, that is said in a sentence."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from components.storage.retry import StorageError

log = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 0.5, 15.0
REMIND_SECONDS = 180.0
FULL = {errno.ENOSPC, errno.EDQUOT}
# A file system that has met an error of its device answers so to every write until it is mounted again.
BROKEN = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}


def wait_for_room(write: Callable[[], T], place: object) -> T:
    """Returns what `write` returns, and repeats it while the disk of `place` is full: nothing is lost, however long it takes.

    The log says so at once and every REMIND_SECONDS. `write` must be able to begin again from any point. Raises StorageError
    where the disk takes no writes at all, which waiting does not mend.
    """
    pause, waited = FIRST_PAUSE_SECONDS, False
    while True:
        try:
            done = write()
        except Exception as error:
            number = _number_of(error)
            if number in BROKEN:
                raise StorageError(_sentence(place, number)) from None
            if number not in FULL:
                raise
        else:
            if waited:
                _WAITS.over(place)
            return done
        waited = True
        _WAITS.say(place)
        time.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE_SECONDS)


@contextlib.contextmanager
def in_words(place: object) -> Iterator[None]:
    """Inside, a disk that is full or takes no writes is a StorageError: for what cannot be written a second time."""
    try:
        yield
    except Exception as error:
        number = _number_of(error)
        if number not in FULL | BROKEN:
            raise
        raise StorageError(_sentence(place, number)) from None


class _Waits:
    """What the threads of this process say while they wait: the first one says it for all."""

    def __init__(self) -> None:
        self._lock, self._began, self._next = threading.Lock(), 0.0, 0.0

    def say(self, place: object) -> None:
        with self._lock:
            now = time.monotonic()
            if now < self._next:
                return
            again = self._began > 0
            self._began, self._next = self._began or now, now + REMIND_SECONDS
            since = f" for {(now - self._began) / 60:.0f} minutes" if again else ""
        log.warning(
            "%s: the disk is full%s. Nothing is lost: trials wait at their next report, and go on within %.0f seconds once"
            " there is room; free some space or raise the quota",
            place,
            since,
            MAX_PAUSE_SECONDS,
        )

    def over(self, place: object) -> None:
        with self._lock:
            if not self._began:
                return
            seconds, self._began, self._next = time.monotonic() - self._began, 0.0, 0.0
        log.warning("%s: there is room again after %.0f seconds, and the search goes on", place, seconds)


_WAITS = _Waits()


def _number_of(error: Exception) -> int | None:
    """Returns the system's error number; safetensors' own errors have it in their text only."""
    if isinstance(error, OSError):
        return error.errno
    words = str(error)
    numbers = FULL | BROKEN if type(error).__module__.startswith("safetensors") else set()
    return next(
        (number for number in numbers if f"os error {number})" in words or f"code: {number}," in words),
        None,
    )


def _sentence(place: object, number: int | None) -> str:
    if number in FULL:
        return f"{place}: its disk is full, or a quota is; free some space, then try the same command again"
    what = "is read-only now" if number == errno.EROFS else f"does not work any more ({os.strerror(number or 0)})"
    return (
        f"{place}: its disk {what}, and a search keeps its record there; once it can be written again (after an error of the"
        " device it has to be checked first), the same command goes on with --resume"
    )
