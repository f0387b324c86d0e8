"""The record of a search: every TrialRecord on a line, on disk before anybody else hears of it.

A search folder holds search.json (what was asked), journal.jsonl (what happened), and what cluster/ keeps there.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from components.experiment.spec import ExperimentSpec
from components.storage.folder import Folder
from components.training.records import TrialRecord

MANIFEST, JOURNAL = "search.json", "journal.jsonl"
LAYOUT = 2  # of what a search keeps to be resumed, Tune's pickled state included; raise it when that changes
_RECORD: TypeAdapter[TrialRecord] = TypeAdapter(Annotated[TrialRecord, Field(discriminator="event")])


class SearchManifest(BaseModel):
    """What a search was asked for. `finished` is set when all its trials have ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_id: str
    experiment: ExperimentSpec
    created: float
    prepared: str
    budget: int | None = Field(None, description="Of each trial, in target tokens; searches of old do not say.")
    finished: bool = False
    layout: int = Field(1, description="LAYOUT of the code that began it.")

    def write(self, folder: Folder) -> None:
        folder.write_text(MANIFEST, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, folder: Folder) -> SearchManifest:
        return cls.model_validate_json(folder.read_text(MANIFEST))


class Journal:
    """Append-only. `place` is where it stands, for people."""

    def __init__(self, folder: Folder) -> None:
        self._lines = folder.log(JOURNAL)
        self.place = self._lines.place

    def append(self, record: TrialRecord) -> None:
        """Returns once the record would survive this process and the machine."""
        self._lines.append(record.model_dump_json())

    def read(self, after: int = 0) -> list[TrialRecord]:
        """Every whole line but the first `after`. Raises ValueError for one that is no record: only the last can be torn."""
        lines = self._lines.read()[after:]
        return [self._record(number, line) for number, line in enumerate(lines, start=after + 1)]

    def close(self) -> None:
        self._lines.close()

    def _record(self, number: int, line: bytes) -> TrialRecord:
        try:
            return _RECORD.validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise ValueError(
                f"{self.place}, line {number}: no record of this version of Turnwise ({problem}); move the file away to start"
                " anew"
            ) from None


def searches_in(folder: Folder) -> list[SearchManifest]:
    """All searches of an experiment's folder, oldest first."""
    searches = [folder / name for name in folder.names()]
    manifests = [SearchManifest.read(search) for search in searches if search.has(MANIFEST)]
    return sorted(manifests, key=lambda manifest: manifest.created)
