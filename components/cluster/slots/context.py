"""What every slot of a search is told, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from components.experiment.spec import ExperimentSpec, TrialSpec
from components.models.base.reference import BaseReference
from components.records.events import Progress
from components.storage.base import Folder

METRIC, TIME = "eval_loss", "target_tokens"  # what a Tune result of a trial says of it, in Progress' words


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


def tune_config(
    number: int,
    branch: str,
    varied: Mapping[str, Any],
    spec: TrialSpec,
    *,
    parent: str | None = None,
    warm_from: str | None = None,
) -> dict[str, Any]:
    """What Tune knows of a trial, in its config under "trial"."""
    plain = spec.model_dump(mode="json")
    return {
        "number": number,
        "branch": branch,
        "varied": dict(varied),
        "spec": plain,
        "parent": parent,
        "warm_from": warm_from,
    }


def trial_of(config: dict[str, Any]) -> tuple[int, str, dict[str, Any], TrialSpec]:
    """(number, branch, what the search varied, the whole spec) of a Tune config."""
    trial = config["trial"]
    return trial["number"], trial["branch"], trial["varied"], TrialSpec.model_validate(trial["spec"])


def origin_of(config: dict[str, Any]) -> tuple[str | None, str | None]:
    """(parent's trial id, the checkpoint whose weights it begins with) of a clone's Tune config; (None, None) of others."""
    return config["trial"]["parent"], config["trial"]["warm_from"]
