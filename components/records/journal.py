"""The record of a search: every TrialEvent on a line, on disk before anybody else hears of it.

A search folder holds search.json (what was asked), journal.jsonl (what happened), and what cluster/ keeps there.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from components.records.events import TrialEvent
from components.storage.base import Folder

JOURNAL = "journal.jsonl"
_RECORD: TypeAdapter[TrialEvent] = TypeAdapter(Annotated[TrialEvent, Field(discriminator="event")])


class Journal:
    """Append-only. `place` is where it stands, for people."""

    def __init__(self, folder: Folder) -> None:
        self._lines = folder.append_log(JOURNAL)
        self.place = self._lines.location

    def append(self, record: TrialEvent) -> None:
        """Returns once the record would survive this process and the machine."""
        self._lines.append(record.model_dump_json())

    def read(self, after: int = 0) -> list[TrialEvent]:
        """Every whole line but the first `after`. Raises ValueError for one that is no record: only the last can be torn."""
        lines = self._lines.read()[after:]
        return [self._record(number, line) for number, line in enumerate(lines, start=after + 1)]

    def close(self) -> None:
        self._lines.close()

    def _record(self, number: int, line: bytes) -> TrialEvent:
        try:
            return _RECORD.validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise ValueError(
                f"{self.place}, line {number}: no record of this version of Turnwise ({problem}); move the file away to start"
                " anew"
            ) from None
