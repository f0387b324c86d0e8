"""A lock for an object store: a small object that its holder rewrites every few seconds.

It keeps two drivers apart as long as both reach the storage. Two cases are not excluded. Two drivers may acquire it within
the same second: pyarrow offers no write that fails if the object exists. And a holder may be cut off from the storage for
longer than STALE_SECONDS, then come back: it finds another holder's name, and says that the lease is lost.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from components.storage.folder import Folder, UnreadableLockError
from components.storage.process_identity import has_ended, process_space

log = logging.getLogger(__name__)

RENEW_SECONDS, STALE_SECONDS, POLL_SECONDS = 10.0, 45.0, 1.0
MAX_BYTES = 64 * 2**10


class Lease:
    """A thread renews it until it is closed or its process ends."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.name, self.holder = folder, name, uuid.uuid4().hex
        self._renewals = 0
        self._closed = threading.Event()
        self._lost: str | None = None
        self._when_lost: Callable[[str], None] | None = None

    @classmethod
    def acquire(cls, folder: Folder, name: str) -> Lease:
        """Waits up to STALE_SECONDS to see whether the last holder still renews it.

        Raises BlockingIOError if it is held: UnreadableLockError where something else than a lease lies there.
        """
        lease = cls(folder, name)
        if lease._is_held():
            raise BlockingIOError(f"{folder.uri}/{name} is held")
        lease._renew()
        if lease._read().get("holder") != lease.holder:
            raise BlockingIOError(f"{folder.uri}/{name} was taken at the same moment")
        threading.Thread(target=lease._keep_renewing, name=f"lease-{name}", daemon=True).start()
        atexit.register(lease.close)
        return lease

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Calls back at once if the lease is lost already."""
        self._when_lost = call
        if self._lost is not None:
            call(self._lost)

    def close(self) -> None:
        """Deletes the lease if the storage is reachable, so that the next holder need not wait for it to expire."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(OSError):
                self.folder.delete_file(self.name, retry=False)

    def _is_held(self) -> bool:
        """A lease is held if it is renewed while we watch. Clocks of two machines are never compared."""
        first = self._read()
        if not first or has_ended(first):
            return False
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
            found = self._read()
            if not found:
                return False
            if found != first:
                return True
        return False

    def _keep_renewing(self) -> None:
        while not self._closed.wait(RENEW_SECONDS):
            try:
                holder = self._holder()
                if self._closed.is_set():
                    return
                if holder not in (None, self.holder):
                    self._closed.set()  # the lease is the other driver's now: close() must not delete it
                    self._lost = f"another driver has taken {self.folder}/{self.name}"
                    log.error("%s; this one ends", self._lost)
                    if self._when_lost is not None:
                        self._when_lost(self._lost)
                    return
                self._renew()
            except OSError as error:
                log.warning("%s/%s could not be renewed: %s", self.folder, self.name, error)

    def _renew(self) -> None:
        self._renewals += 1
        content = {
            "holder": self.holder,
            "renewals": self._renewals,
            **process_space(),
            "process": os.getpid(),
        }
        self.folder.write_text(self.name, json.dumps(content) + "\n")

    def _holder(self) -> str | None:
        """Returns who holds it; None if there is no lease. What is unreadable was no driver's, and is written over."""
        try:
            return self._read().get("holder")
        except UnreadableLockError as error:
            log.warning("%s; this driver writes its own there", error)
            return None

    def _read(self) -> dict[str, Any]:
        """Returns the lease; empty if there is none."""
        try:
            content = json.loads(self.folder.read_small(self.name, MAX_BYTES))
            if isinstance(content, dict) and isinstance(content.get("holder"), str):
                return content
        except FileNotFoundError:
            return {}
        except (ValueError, RecursionError):
            pass
        raise UnreadableLockError(
            f"{self.folder}/{self.name}: is no lease that this version can read, so it counts as held; see whether another"
            " version of Turnwise runs this search, and delete that file if none does"
        )
