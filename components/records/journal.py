"""The journal of a search: every TrialEvent on a line, on disk before any other subscriber gets it.

A search folder holds search.json (what was asked), journal.jsonl (what happened), and what cluster/ keeps there.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from components.errors import InputError
from components.records.events import TrialEvent
from components.storage.folder import Folder
from components.storage.foreign_files import explain_foreign

JOURNAL = "journal.jsonl"
_EVENT: TypeAdapter[TrialEvent] = TypeAdapter(Annotated[TrialEvent, Field(discriminator="event")])


class Journal:
    """Append-only. `place` names it, for people."""

    def __init__(self, folder: Folder) -> None:
        self._lines = folder.append_log(JOURNAL)
        self.place = self._lines.location

    def append(self, event: TrialEvent) -> None:
        """Returns once the event would survive this process and the machine."""
        self._lines.append(event.model_dump_json())

    def read(self, after: int = 0) -> list[TrialEvent]:
        """Returns the events of all complete lines but the first `after`. Raises InputError for a line that is no event."""
        with explain_foreign(self.place):
            lines = self._lines.read(after)
            return [self._parse(number, line) for number, line in enumerate(lines, start=after + 1)]

    def close(self) -> None:
        self._lines.close()

    def _parse(self, number: int, line: bytes) -> TrialEvent:
        try:
            return _EVENT.validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise InputError(
                f"{self.place}, line {number}: no record of this version of Turnwise ({problem}); move the file away to start"
                " again"
            ) from None
