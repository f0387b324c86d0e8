"""What a search was started with: search.json in its folder."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import ExperimentSpec
from components.storage.folder import Folder

MANIFEST = "search.json"
LAYOUT = 5  # of what a search keeps to be resumed, Tune's pickled state included; raise it when that changes


class SearchManifest(BaseModel):
    """What a search was started with. `finished`: it has an outcome, and cannot be resumed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    search_id: str
    experiment: ExperimentSpec
    created: float
    prepared: str
    budget: int | None = Field(None, description="Of each trial, in target tokens; old manifests do not have it.")
    attention: str | None = Field(None, description="Of the base model, decided when the search began.")
    started_from: tuple[str, ...] = Field((), description="Earlier searches that it learned from, as EXPERIMENT/ID.")
    finished: bool = False
    layout: int = Field(1, description="LAYOUT of the code that began it.")

    def write(self, folder: Folder) -> None:
        folder.write_text(MANIFEST, self.model_dump_json(indent=1) + "\n")

    @classmethod
    def read(cls, folder: Folder) -> SearchManifest:
        return cls.model_validate_json(folder.read_text(MANIFEST))


def searches_in(folder: Folder) -> list[SearchManifest]:
    """All searches of an experiment's folder, oldest first."""
    searches = [folder / name for name in folder.list_names()]
    manifests = [SearchManifest.read(search) for search in searches if search.has_file(MANIFEST)]
    return sorted(manifests, key=lambda manifest: manifest.created)
