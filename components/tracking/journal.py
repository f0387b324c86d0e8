"""The record of a search: every TrialRecord on a line, on disk before anybody else hears of it.

A search folder holds search.json (what was asked), journal.jsonl (what happened), and what cluster/ keeps there.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO

from pydantic import BaseModel, ConfigDict, TypeAdapter

from components.experiment.spec import ExperimentSpec
from components.training.records import TrialEnded, TrialProgressed, TrialRecord, TrialStarted

MANIFEST, JOURNAL = "search.json", "journal.jsonl"
_RECORD: TypeAdapter[TrialRecord] = TypeAdapter(TrialStarted | TrialProgressed | TrialEnded)


class SearchManifest(BaseModel):
    """What a search was asked for. `finished` is set when all its trials have ended."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_id: str
    experiment: ExperimentSpec
    created: float
    prepared: str
    finished: bool = False

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = folder / f".{MANIFEST}"
        scratch.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
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
            self._mend()
            self._file = self.path.open("a", encoding="utf-8")
        self._file.write(record.model_dump_json() + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def read(self) -> list[TrialRecord]:
        if not self.path.exists():
            return []
        lines = self.path.read_bytes().split(b"\n")
        return [_RECORD.validate_json(line) for line in lines[:-1] if line]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _mend(self) -> None:
        """Cuts a torn last line off, or the next record would be glued to it."""
        if not self.path.exists():
            return
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(self.path, whole)


def searches_in(folder: Path) -> list[SearchManifest]:
    """All searches of an experiment's folder, oldest first."""
    manifests = [SearchManifest.read(path.parent) for path in folder.glob(f"*/{MANIFEST}")]
    return sorted(manifests, key=lambda manifest: manifest.created)
