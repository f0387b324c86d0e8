"""A lock where there is only an object store: a small object that its holder writes anew every few seconds.

It keeps two drivers apart as long as both reach the storage. What it cannot exclude: two that begin within the same
second (the store has no write that fails if there is something already, or none that pyarrow knows), and a holder that
was cut off from the storage for longer than STALE_SECONDS and comes back; that one finds another's name and ends itself.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import TYPE_CHECKING, Any

from components.storage.node_cache import is_running

if TYPE_CHECKING:
    from components.storage.object_store import RemoteFolder

log = logging.getLogger(__name__)

RENEW_SECONDS, STALE_SECONDS, LOOK_SECONDS = 10.0, 45.0, 1.0


class Lease:
    """Renewed in a thread until it is closed, or its process has ended."""

    def __init__(self, folder: RemoteFolder, name: str) -> None:
        self.folder, self.name, self.holder = folder, name, uuid.uuid4().hex
        self._renewals = 0
        self._closed = threading.Event()

    @classmethod
    def taken(cls, folder: RemoteFolder, name: str) -> Lease:
        """Raises BlockingIOError if somebody holds it. Waits, to see that a holder who does not say goodbye is dead."""
        lease = cls(folder, name)
        if lease._is_held():
            raise BlockingIOError(f"{folder.uri}/{name} is held")
        lease._renew()
        if lease._found().get("holder") != lease.holder:
            raise BlockingIOError(f"{folder.uri}/{name} was taken at the same moment")
        threading.Thread(target=lease._keep, name=f"lease-{name}", daemon=True).start()
        atexit.register(lease.close)
        return lease

    def close(self) -> None:
        """Says goodbye, if the storage can hear it: whoever comes next need not wait."""
        if not self._closed.is_set():
            self._closed.set()
            with contextlib.suppress(OSError):
                self.folder.store.delete_file(f"{self.folder.path}/{self.name}")

    def _is_held(self) -> bool:
        """By the holder's own clock nothing is judged: held is what is renewed while we look."""
        first = self._found()
        if not first or _is_dead(first):
            return False
        deadline = time.monotonic() + STALE_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            found = self._found()
            if not found:
                return False
            if found != first:
                return True
        return False

    def _keep(self) -> None:
        while not self._closed.wait(RENEW_SECONDS):
            try:
                holder = self._found().get("holder")
                if self._closed.is_set():
                    return
                if holder not in (None, self.holder):
                    log.error("%s/%s: another driver has taken this search over; this one ends", self.folder, self.name)
                    self._closed.set()  # what lies there is the other's
                    _thread.interrupt_main()
                    return
                self._renew()
            except OSError as error:
                log.warning("%s/%s could not be renewed: %s", self.folder, self.name, error)

    def _renew(self) -> None:
        self._renewals += 1
        content = {
            "holder": self.holder,
            "renewals": self._renewals,
            "host": socket.gethostname(),
            "process": os.getpid(),
        }
        self.folder.write_text(self.name, json.dumps(content) + "\n")

    def _found(self) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads(self.folder.read_text(self.name))
        except FileNotFoundError:
            return {}
        return content


def _is_dead(found: dict[str, Any]) -> bool:
    """A process of this very machine need not be waited for."""
    return bool(found["host"] == socket.gethostname() and not is_running(found["process"]))
