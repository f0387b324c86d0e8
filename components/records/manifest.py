"""What a search was started with: search.json in its folder."""

from __future__ import annotations

import logging

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from components.experiment.spec import ExperimentSpec
from components.storage.folder import Folder

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
        return cls.model_validate_json(folder.read_text(MANIFEST))


def searches_in(folder: Folder) -> list[SearchManifest]:
    """All searches of an experiment's folder, oldest first. What another version wrote otherwise is left out and logged."""
    searches = [folder / name for name in folder.list_names()]
    manifests = []
    for search in searches:
        if not search.has_file(MANIFEST):
            continue
        try:
            manifests.append(SearchManifest.read(search))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(map(str, problem["loc"]))
            reason = f"{place}: {problem['msg']}"
            log.warning("%s/%s is of another version of Turnwise (%s): left out", search, MANIFEST, reason)
    return sorted(manifests, key=lambda manifest: manifest.created)
