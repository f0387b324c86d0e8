"""The driver of a search as others see it through the storage: its heartbeat, and its inbox for requests."""

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

from components.records.commands import CommandReply, Request
from components.records.mailbox import MAX_BYTES, Mailbox
from components.storage.folder import Folder
from components.storage.foreign_files import explain_foreign
from components.storage.retry import StorageError

log = logging.getLogger(__name__)

FILE = "driver.json"
POLL_SECONDS = 2.0  # in an object store, each look costs a little money
BEAT_SECONDS = 10.0
SILENT_SECONDS = 6 * BEAT_SECONDS  # a driver without a beat for so long is taken for dead


class DriverHeartbeat(BaseModel):
    """Who runs a search, since when, and where else to look."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", validate_by_name=True, serialize_by_alias=True, allow_inf_nan=False
    )

    host: str
    pid: int
    started: float = Field(description="Unix seconds.")
    last_beat: float = Field(
        0.0, alias="beat", description="Unix seconds by the driver's clock; it changes while the driver lives."
    )
    ran_seconds: float = Field(0.0, description="How long this and earlier drivers have run, up to the last beat.")
    proof_seconds: float = Field(0.0, description="How long one process has been proving winners.")
    outcome: str | None = Field(None, description="What this driver's part of the search came to, once it has ended.")
    checkpoint_bytes: int = Field(
        0, description="Of the largest one: with less room on the disk, trials may have to wait."
    )
    links: dict[str, str] = Field(default_factory=dict, description="Ray dashboard, MLflow run, job.")

    @classmethod
    def read(cls, folder: Folder) -> DriverHeartbeat | None:
        """Returns the last driver's; None if there has been no driver yet. Raises InputError if it cannot be read."""
        with explain_foreign(f"{folder}/{FILE}", way_out="delete it; the next driver writes it anew"):
            try:
                return cls.model_validate_json(folder.read_small(FILE, MAX_BYTES))
            except FileNotFoundError:
                return None

    def write(self, folder: Folder) -> None:
        folder.write_text(FILE, self.model_dump_json(indent=1) + "\n")


class DriverInbox:
    """A context manager: inside, a thread writes the heartbeat and the replies, and looks for requests.

    So the search never waits for a storage that is slow, or away for a while.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder, self.mailbox = folder, Mailbox(folder)
        self._started, self._began = time.time(), time.monotonic()
        before = DriverHeartbeat.read(folder)
        self.last_sign = before.last_beat if before else 0.0  # of the driver before this one, in Unix seconds
        self._ran_before = before.ran_seconds if before else 0.0
        self.proof_seconds = before.proof_seconds if before else 0.0
        self._links: dict[str, str] = {}
        self.checkpoint_bytes = 0
        self._outcome: str | None = None
        self._found: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[str, CommandReply]] = queue.SimpleQueue()
        self._seen: set[str] = set()
        self._next_beat = 0.0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="driver-inbox", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("interrupted")

    @property
    def ran_seconds(self) -> float:
        """How long drivers of this search have run; the time between them does not count."""
        return self._ran_before + time.monotonic() - self._began

    def show(self, links: dict[str, str]) -> None:
        """Publishes where else this search can be looked at."""
        self._links, self._next_beat = links, 0.0

    def poll(self) -> list[Request]:
        new = []
        while not self._found.empty():
            new.append(self._found.get())
        return new

    def reply(self, request: Request, reply: CommandReply) -> None:
        self._replies.put((request.request_id, reply))

    def close(self, outcome: str) -> None:
        """Publishes what this driver's part of the search came to; only the first call counts. Open requests stay open."""
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
        """The heartbeat comes first, and nothing that lies among the requests ends it."""
        for what, do in (
            ("write its heartbeat", self._beat),
            ("reply to requests", self._write_replies),
            ("read requests", self._look),
        ):
            try:
                do()
            except Exception as error:  # noqa: BLE001 - the thread's end would be taken for the driver's
                log.warning("%s: the driver cannot %s now: %s", self.folder, what, error)
                if isinstance(error, StorageError):
                    return  # it has waited for the storage long enough

    def _look(self) -> None:
        for request in self.mailbox.waiting():
            if request.request_id not in self._seen:
                self._seen.add(request.request_id)
                self._found.put(request)

    def _beat(self) -> None:
        if time.monotonic() < self._next_beat:
            return
        self._next_beat = time.monotonic() + BEAT_SECONDS
        DriverHeartbeat(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=self._started,
            last_beat=time.time(),
            ran_seconds=self.ran_seconds,
            proof_seconds=self.proof_seconds,
            outcome=self._outcome,
            checkpoint_bytes=self.checkpoint_bytes,
            links=self._links,
        ).write(self.folder)

    def _write_replies(self) -> None:
        """Tries each reply once, so that one that cannot be written holds up no other."""
        failed: OSError | None = None
        for _ in range(self._replies.qsize()):
            reply = self._replies.get()
            try:
                self.mailbox.reply(*reply)
            except OSError as error:
                self._replies.put(reply)
                failed = error
                if isinstance(error, StorageError):
                    break
        if failed is not None:
            raise failed
