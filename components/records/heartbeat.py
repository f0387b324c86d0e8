"""The driver of a search as others see it through the storage: a sign that it lives, and a desk for requests."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

from components.records.commands import Reply, Request
from components.records.mailbox import Mailbox
from components.storage.base import Folder

log = logging.getLogger(__name__)

SIGN = "driver.json"
POLL_SECONDS = 2.0  # in an object store, each look costs a little money
BEAT_SECONDS = 10.0
SILENT_SECONDS = 6 * BEAT_SECONDS  # without a beat, nobody is there


class DriverHeartbeat(BaseModel):
    """Who runs a search, since when, and where else to look."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    pid: int
    started: float = Field(description="Unix seconds.")
    beat: float = Field(0.0, description="Unix seconds by the driver's clock; it changes while the driver lives.")
    outcome: str | None = Field(None, description="What this driver's part of the search came to, once it has ended.")
    links: dict[str, str] = Field(default_factory=dict, description="Ray dashboard, MLflow run, job.")

    @classmethod
    def read(cls, folder: Folder) -> DriverHeartbeat | None:
        """None where no driver has been yet."""
        try:
            return cls.model_validate_json(folder.read_text(SIGN))
        except FileNotFoundError:
            return None

    def write(self, folder: Folder) -> None:
        folder.write_text(SIGN, self.model_dump_json(indent=1) + "\n")


class DriverInbox:
    """A context manager: inside, the sign beats, requests are found and replies are written, by a thread of its own.

    So a storage that is slow, or away for a while, costs the search nothing.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder, self.mailbox = folder, Mailbox(folder)
        self._started = time.time()
        self._links: dict[str, str] = {}
        self._outcome: str | None = None
        self._found: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._owed: queue.SimpleQueue[tuple[str, Reply]] = queue.SimpleQueue()
        self._seen: set[str] = set()
        self._next_beat = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="driver-desk", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("interrupted")

    def show(self, links: dict[str, str]) -> None:
        """Where else this search can be looked at."""
        self._links, self._next_beat = links, 0.0

    def take(self) -> list[Request]:
        taken = []
        while not self._found.empty():
            taken.append(self._found.get())
        return taken

    def reply(self, request: Request, reply: Reply) -> None:
        self._owed.put((request.request_id, reply))

    def close(self, outcome: str) -> None:
        """Says what this driver's part of the search has come to; only the first call does. Requests are left alone."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._thread.join()
        self._outcome, self._next_beat = outcome, 0.0
        self._turn()

    def _work(self) -> None:
        while not self._closed.is_set():
            self._turn()
            self._closed.wait(POLL_SECONDS)

    def _turn(self) -> None:
        try:
            self._write_replies()
            for request in self.mailbox.waiting():
                if request.request_id not in self._seen:
                    self._seen.add(request.request_id)
                    self._found.put(request)
            if time.monotonic() >= self._next_beat:
                self._next_beat = time.monotonic() + BEAT_SECONDS
                self._beat()
        except OSError as error:
            log.warning("%s does not take part in the search's mail now: %s", self.folder, error)

    def _beat(self) -> None:
        DriverHeartbeat(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            beat=time.time(),
            outcome=self._outcome,
            links=self._links,
        ).write(self.folder)

    def _write_replies(self) -> None:
        while not self._owed.empty():
            owed = self._owed.get()
            try:
                self.mailbox.reply(*owed)
            except OSError:
                self._owed.put(owed)
                raise
