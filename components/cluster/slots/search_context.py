"""What every process of a search knows of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.data.general_text import Passage
from components.experiment.spec import ExperimentSpec
from components.models.base.reference import BaseReference
from components.records.events import Progress
from components.storage.folder import Folder
from components.training.model_abilities import Layout


@dataclass(frozen=True, kw_only=True)
class SearchContext:
    """Plain values only: it travels to every process of the search.

    `folder` is the search's own, on storage that every node sees. `budget` is each trial's, in target tokens.
    `finished_trials` had ended before the search was resumed: they are not run again. Each has its last report.
    """

    experiment: ExperimentSpec
    search_id: str
    folder: Folder
    prepared: Folder
    budget: int
    pad_token_id: int
    base: BaseReference
    layout: Layout = "trees"
    finished_trials: dict[str, Progress | None] = field(default_factory=dict)
    general: tuple[Passage, ...] = ()

    @property
    def checkpoints(self) -> Folder:
        return self.folder / "checkpoints"
