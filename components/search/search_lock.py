"""Keeps a second driver out: of a search, and of the choice which search an experiment's command means."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from components.errors import InputError
from components.records.driver_presence import DriverHeartbeat
from components.storage.folder import Folder, Lock, UnreadableLockError

LOCK = "lock"  # of a search in its folder, and of the choice in the experiment's folder


class SearchLock:
    """What one driver holds. `take` is called for the search that is chosen; `close` gives back whatever is held.

    Of two equal commands at once only one may choose: the other would begin the same search a second time. So the choice is
    locked until the search has begun, that is, until others find it.
    """

    def __init__(self, experiment_folder: Folder) -> None:
        self._experiment_folder = experiment_folder
        self._choice: Lock | None = None
        self._search: Lock | None = None
        self._not_begun: Folder | None = None

    def begin_choice(self) -> None:
        """Raises InputError while another command chooses, or prepares what it has chosen."""
        try:
            self._choice = self._experiment_folder.lock(LOCK)
        except UnreadableLockError as error:
            raise InputError(str(error)) from None
        except BlockingIOError:
            raise InputError(
                f"{self._experiment_folder}: another command is starting a search of this experiment right now; wait until"
                " it has begun (--watch shows it then), or begin a search of your own beside it with --new"
            ) from None

    def take(self, search_folder: Folder, *, new: bool = False) -> None:
        """Raises InputError if another driver runs the search. `new`: its folder goes unless `begun` is called."""
        try:
            self._search = search_folder.lock(LOCK)
        except UnreadableLockError as error:
            raise InputError(str(error)) from None
        except BlockingIOError:
            raise InputError(
                f"search {search_folder.name} is running{_where(search_folder)}: look at it with --watch"
                f" {search_folder.name}, wait for its end, or begin another search with --new"
            ) from None
        self._not_begun = search_folder if new else None

    def leave(self) -> None:
        """Gives the search back; the choice goes on."""
        if self._search is not None:
            self._search.close()
            self._search = None

    def begun(self) -> None:
        """Others find the search now, and may choose."""
        self._not_begun = None
        if self._choice is not None:
            self._choice.close()
            self._choice = None

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Calls back with the reason if another driver takes the search."""
        if self._search is not None:
            self._search.when_lost(call)

    def close(self) -> None:
        self.leave()
        if self._not_begun is not None:
            with contextlib.suppress(OSError):
                self._not_begun.delete()
        self.begun()


def _where(search_folder: Folder) -> str:
    heartbeat = DriverHeartbeat.read(search_folder)
    return f" (its driver is process {heartbeat.pid} on {heartbeat.host})" if heartbeat is not None else ""
