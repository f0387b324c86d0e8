"""Asks a running search to do something with one of its trials, from any machine that reaches its storage."""

from __future__ import annotations

import time

from components.errors import InputError, TurnwiseError
from components.experiment.spec import ExperimentSpec
from components.records.commands import CommandReply, TrialCommand
from components.records.driver_presence import DriverHeartbeat
from components.records.mailbox import Mailbox
from components.records.manifest import SearchManifest
from components.search.find import NEWEST, find_search
from components.storage.folder import Folder

TIMEOUT_SECONDS = 60.0
MOST_SECONDS = 86400.0
POLL_SECONDS = 0.5


class NoReplyError(TurnwiseError):
    """The driver of a search has not replied in time. The request remains, and is answered when the search goes on."""


def send_command(
    experiment: ExperimentSpec,
    command: TrialCommand,
    *,
    search_id: str = NEWEST,
    timeout_seconds: float = TIMEOUT_SECONDS,
) -> CommandReply:
    """Sends the command to an unfinished search of the experiment, and waits for the driver's reply.

    Raises InputError if there is no such search, and NoReplyError.
    """
    search_id = find_search(experiment, search_id, unfinished=True).search_id
    return ask(experiment.folder / search_id, command, timeout_seconds=timeout_seconds)


def ask(search_folder: Folder, command: TrialCommand, *, timeout_seconds: float = TIMEOUT_SECONDS) -> CommandReply:
    """Sends the command to the search of this folder, and waits for the driver's reply. Raises NoReplyError."""
    if not 0 <= timeout_seconds <= MOST_SECONDS:  # NaN is neither, and would never be over
        raise InputError(f"no reply can be waited for {timeout_seconds:g} seconds; give 0 to {MOST_SECONDS:g}")
    mailbox = Mailbox(search_folder)
    request = mailbox.ask(command)
    deadline = time.monotonic() + timeout_seconds
    while (reply := mailbox.reply_to(request.request_id)) is None:
        if SearchManifest.read(search_folder).finished:
            return CommandReply(accepted=False, message=f"search {search_folder.name} has ended meanwhile")
        if time.monotonic() > deadline:
            raise NoReplyError(
                f"no reply within {timeout_seconds:g} seconds: {_driver(search_folder)}. The request stands in"
                f" {mailbox.folder}, and is answered when search {search_folder.name} goes on: resume it"
            )
        time.sleep(POLL_SECONDS)
    return reply


def _driver(search_folder: Folder) -> str:
    heartbeat = DriverHeartbeat.read(search_folder)
    if heartbeat is None or heartbeat.outcome is not None:
        return "no driver is at this search"
    return f"the last driver of this search was process {heartbeat.pid} on {heartbeat.host}"
