"""Requests to a running search, and its replies, as files in the search's folder: no port, from anywhere that reaches it.

requests/<id>.json          a Request, written as a whole
requests/<id>.reply.json    the driver's CommandReply: the request is settled, for every later driver too

Others may put anything there. A request's id is its file's name, whatever it says itself; what cannot be read is refused,
and holds up no other request.
"""

from __future__ import annotations

import logging
import re
import socket
import time
import uuid

from components.errors import InputError
from components.records.commands import MAX_LETTERS, CommandReply, Request, TrialCommand
from components.records.user_name import user_name
from components.storage.folder import Folder
from components.storage.foreign_files import reason_of
from components.storage.retry import StorageError

log = logging.getLogger(__name__)

FOLDER, REPLY = "requests", ".reply.json"
REQUEST_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
MAX_BYTES = 64 * 2**10  # of a request or a reply


class Mailbox:
    """The requests of one search, for both sides."""

    def __init__(self, search_folder: Folder) -> None:
        self.folder = search_folder / FOLDER
        self._ignored: set[str] = set()

    def ask(self, command: TrialCommand) -> Request:
        """Writes a new request."""
        now = time.time()
        # By time, so that they are served in order, and unique: others may ask in the same millisecond.
        request_id = f"{int(now * 1000):013d}-{uuid.uuid4().hex[:8]}"
        by = f"{user_name()}@{socket.gethostname()}"[:MAX_LETTERS]
        request = Request(request_id=request_id, by=by, time=now, command=command)
        self.folder.write_text(f"{request_id}.json", request.model_dump_json(indent=1) + "\n")
        return request

    def reply_to(self, request_id: str) -> CommandReply | None:
        """Returns the driver's reply; None while there is none. Raises InputError if something else lies there."""
        name = f"{request_id}{REPLY}"
        try:
            return CommandReply.model_validate_json(self.folder.read_small(name, MAX_BYTES))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise InputError(
                f"{self.folder}/{name}: no reply of this version of Turnwise: {reason_of(error)}"
            ) from None

    def waiting(self) -> list[Request]:
        """Returns requests without a reply, the oldest first. Replies to what is no request of this version."""
        names = {name for name in self.folder.list_names() if name.endswith(".json")}
        asked = sorted(name.removesuffix(".json") for name in names if not name.endswith(REPLY))
        found = (self._read(request_id) for request_id in asked if f"{request_id}{REPLY}" not in names)
        return [request for request in found if request is not None]

    def reply(self, request_id: str, reply: CommandReply) -> None:
        self.folder.write_text(f"{request_id}{REPLY}", reply.model_dump_json(indent=1) + "\n")

    def _read(self, request_id: str) -> Request | None:
        if not REQUEST_ID.fullmatch(request_id):
            if request_id not in self._ignored:
                self._ignored.add(request_id)
                log.warning("%s: %s is the name of no request, and stays unread", self.folder, ascii(request_id)[:100])
            return None
        try:
            content = self.folder.read_small(f"{request_id}.json", MAX_BYTES)
            if b"\0" in content or b"\\u0000" in content:
                raise ValueError("holds a NUL character")
            return Request.model_validate_json(content).model_copy(update={"request_id": request_id})
        except (FileNotFoundError, StorageError) as error:
            log.warning("%s: request %s cannot be read now: %s", self.folder, request_id, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it holds up no other request
            self._refuse(request_id, reason_of(error))
        return None

    def _refuse(self, request_id: str, reason: str) -> None:
        message = f"no request of this version of Turnwise: {reason}"
        try:
            self.reply(request_id, CommandReply(accepted=False, message=message))
        except OSError as error:
            log.warning("%s: request %s cannot be refused now: %s", self.folder, request_id, error)
