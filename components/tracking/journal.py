"""The record of a search: every TrialRecord on a line, on disk before anybody else hears of it.

A search folder holds search.json (what was asked), journal.jsonl (what happened), and what cluster/ keeps there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from components.experiment.spec import ExperimentSpec
from components.training.records import TrialRecord

MANIFEST, JOURNAL = "search.json", "journal.jsonl"
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

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".{MANIFEST}"
        with scratch.open("w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=1) + "\n")
            _to_disk(file)
        scratch.replace(folder / MANIFEST)

    @classmethod
    def read(cls, folder: Path) -> SearchManifest:
        return cls.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))


class Journal:
    """Append-only. A line that a kill has torn is the last one, and is left out."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL
        self._file: IO[str] | None = None

    def append(self, record: TrialRecord) -> None:
        """Returns once the record would survive this process and the machine."""
        if self._file is None:
            self._file = self._open()
        self._file.write(record.model_dump_json() + "\n")
        _to_disk(self._file)

    def read(self) -> list[TrialRecord]:
        """Every whole line. Raises ValueError for one that is no record: only the last one can be torn."""
        if not self.path.exists():
            return []
        *lines, _torn = self.path.read_bytes().split(b"\n")
        return [self._record(number, line) for number, line in enumerate(lines, start=1)]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _record(self, number: int, line: bytes) -> TrialRecord:
        try:
            return _RECORD.validate_json(line)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise ValueError(
                f"{self.path}, line {number}: no record of this version of Turnwise ({problem}); move the file away to start"
                " anew"
            ) from None

    def _open(self) -> IO[str]:
        """A torn last line is cut off, or the next record would be glued to it."""
        if self.path.exists():
            content = self.path.read_bytes()
            os.truncate(self.path, content.rfind(b"\n") + 1)
        file = self.path.open("a", encoding="utf-8")
        # A new file is in its folder for good only when the folder is on disk too.
        folder = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        return file


def searches_in(folder: Path) -> list[SearchManifest]:
    """All searches of an experiment's folder, oldest first."""
    manifests = [SearchManifest.read(path.parent) for path in folder.glob(f"*/{MANIFEST}")]
    return sorted(manifests, key=lambda manifest: manifest.created)


def _to_disk(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())
