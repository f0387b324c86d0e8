"""Requests to a running search, and its replies, as files in the search's folder: no port, from anywhere that reaches it.

requests/<id>.json          a Request, written as a whole
requests/<id>.reply.json    the driver's CommandReply: the request is settled, for every later driver too
"""

from __future__ import annotations

import getpass
import os
import socket
import time
import uuid

from pydantic import ValidationError

from components.records.commands import CommandReply, Request, TrialCommand
from components.storage.base import Folder

FOLDER, REPLY = "requests", ".reply.json"


class Mailbox:
    """The requests of one search, for both sides."""

    def __init__(self, search_folder: Folder) -> None:
        self.folder = search_folder / FOLDER

    def ask(self, command: TrialCommand) -> Request:
        """Writes a new request."""
        now = time.time()
        # By time, so that they are served in order, and unique: others may ask in the same millisecond.
        request_id = f"{int(now * 1000):013d}-{uuid.uuid4().hex[:8]}"
        request = Request(request_id=request_id, by=f"{_user()}@{socket.gethostname()}", time=now, command=command)
        self.folder.write_text(f"{request_id}.json", request.model_dump_json(indent=1) + "\n")
        return request

    def reply_to(self, request_id: str) -> CommandReply | None:
        """Returns the driver's reply; None while there is none."""
        name = f"{request_id}{REPLY}"
        return CommandReply.model_validate_json(self.folder.read_text(name)) if self.folder.has_file(name) else None

    def waiting(self) -> list[Request]:
        """Returns requests without a reply, the oldest first. Replies to what is no request of this version."""
        names = {name for name in self.folder.list_names() if name.endswith(".json") and not name.startswith(".")}
        asked = sorted(name.removesuffix(".json") for name in names if not name.endswith(REPLY))
        found = (self._read(request_id) for request_id in asked if f"{request_id}{REPLY}" not in names)
        return [request for request in found if request is not None]

    def reply(self, request_id: str, reply: CommandReply) -> None:
        self.folder.write_text(f"{request_id}{REPLY}", reply.model_dump_json(indent=1) + "\n")

    def _read(self, request_id: str) -> Request | None:
        try:
            return Request.model_validate_json(self.folder.read_text(f"{request_id}.json"))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            self.reply(
                request_id, CommandReply(accepted=False, message=f"no request of this version of Turnwise: {problem}")
            )
            return None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return str(os.getuid())
