"""What every slot of a search is told, once."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.experiment.spec import ExperimentSpec
from components.models.base.reference import BaseReference
from components.records.events import Progress
from components.storage.base import Folder


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """Plain values only: it travels to every process of the search.

    `folder` is the search's own, on storage every node sees. `ended` are trials that a search which is being resumed had
    finished already, with their last report: they are not run again.
    """

    experiment: ExperimentSpec
    search_id: str
    folder: Folder
    prepared: Folder
    pad_token_id: int
    base: BaseReference
    ended: dict[str, Progress | None] = field(default_factory=dict)

    @property
    def checkpoints(self) -> Folder:
        return self.folder / "checkpoints"
