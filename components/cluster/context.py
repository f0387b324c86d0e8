"""What every slot of a search is told, once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from components.experiment.spec import ExperimentSpec, TrialSpec
from components.models.reference import BaseReference
from components.storage.folder import Folder
from components.training.records import Progress


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


def trial_of(config: dict[str, Any]) -> tuple[int, str, dict[str, Any], TrialSpec]:
    """(number, branch, what the search varied, the whole spec) of a Tune config made by components/cluster/sampling.py."""
    trial = config["trial"]
    return trial["number"], trial["branch"], trial["varied"], TrialSpec.model_validate(trial["spec"])
