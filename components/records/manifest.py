"""What a search was started with: search.json in its folder."""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.errors import InputError
from components.experiment.spec import Dtype, ExperimentSpec
from components.storage.folder import Folder
from components.storage.foreign_files import explain_foreign, reason_of

log = logging.getLogger(__name__)

MANIFEST = "search.json"
LAYOUT = 6  # of what a search keeps to be resumed; raise it when that changes


class ManifestBase(BaseModel):
    """What was prepared and decided for a base model when the search began. See SearchManifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prepared: str
    attention: str | None


class SearchManifest(BaseModel):
    """What a search was started with. `finished`: it has an outcome, and cannot be resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_id: str
    experiment: ExperimentSpec
    created: float
    prepared: str
    budget: int | None = Field(
        None, description="Of each trial, in target tokens (bytes if bases differ); old manifests do not have it."
    )
    attention: str | None = Field(None, description="Of the base model, decided when the search began.")
    precisions: dict[str, Dtype] = Field({}, description="What `precision: auto` came to, by branch.")
    other_bases: dict[str, ManifestBase] = Field({}, description="Of branches with another base, by their name.")
    started_from: tuple[str, ...] = Field((), description="Earlier searches that it learned from, as EXPERIMENT/ID.")
    finished: bool = False
    layout: int = Field(1, description="LAYOUT of the code that began it.")

    def base_of(self, branch: str) -> ManifestBase:
        own = ManifestBase(prepared=self.prepared, attention=self.attention)
        return self.other_bases.get(branch, own)

    def write(self, folder: Folder) -> None:
        folder.write_text(MANIFEST, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, folder: Folder) -> SearchManifest:
        """Raises InputError if there is none, or another version of Turnwise wrote it otherwise, or it is broken."""
        place = f"{folder}/{MANIFEST}"
        with explain_foreign(place):
            written = folder.read_text(MANIFEST)
            try:
                return cls.model_validate_json(written)
            except ValidationError as error:
                if error.errors()[0]["type"] == "json_invalid":
                    raise
                raise InputError(f"{place} is of another version of Turnwise ({reason_of(error)})") from None


def searches_in(folder: Folder) -> list[SearchManifest]:
    """All searches of an experiment's folder, oldest first. What cannot be read is left out and logged."""
    manifests, unreadable = _read_all(folder)
    for reason in unreadable.values():
        log.warning("%s: left out", reason)
    return sorted(manifests, key=lambda manifest: manifest.created)


def unreadable_searches(folder: Folder) -> dict[str, str]:
    """The searches of an experiment's folder that searches_in leaves out: id -> why."""
    return _read_all(folder)[1]


def _read_all(folder: Folder) -> tuple[list[SearchManifest], dict[str, str]]:
    manifests: list[SearchManifest] = []
    unreadable: dict[str, str] = {}
    for name in folder.list_names():
        if (folder / name).has_file(MANIFEST):
            try:
                manifests.append(SearchManifest.read(folder / name))
            except InputError as error:
                unreadable[name] = str(error)
    return manifests, unreadable
