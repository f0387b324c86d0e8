"""The trials of any number of searches as one table."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from components.errors import InputError, TrackingError
from components.experiment.spec import ExperimentSpec
from components.records.events import TrialHistory, replay
from components.records.journal import Journal
from components.records.manifest import MANIFEST, SearchManifest, searches_in
from components.reports.leaderboard import best_loss, spent, worker_seconds
from components.storage.folder import Folder
from components.storage.foreign_files import explain_foreign
from components.storage.open_folder import folder_at
from components.tracking.find_runs import may_have_runs, trial_run_ids
from components.tracking.mlflow_access import check_tracking, tracking_uri

log = logging.getLogger(__name__)

Searches = ExperimentSpec | str | Path
FIRST = ["experiment", "search", "trial", "branch"]
LAST = ["target_tokens", "eval_loss", "train_loss", "worker_seconds", "state", "checkpoint", "parent", "run_id"]


def results(searches: Searches | Sequence[Searches]) -> pd.DataFrame:
    """A row for each trial of all searches of an experiment, or of several, in the order of their start.

    Columns: experiment, search, trial (its number), branch; a column for each varied value by its dotted path, and for each
    score of what the best checkpoint says, by its name; target_tokens (trained on), eval_loss (nats per target token, of the
    best checkpoint), train_loss (of the last report), worker_seconds, state, checkpoint, parent (the trial id it was cloned
    from), run_id (MLflow's; missing if MLflow does not have it or is away).

    Args:
        searches: an experiment, the folder or URI of an experiment (STORAGE/NAME) or of one search, or a list of these.

    Raises:
        InputError: there is no search in one of them.
    """
    named = [searches] if isinstance(searches, ExperimentSpec | str | Path) else searches
    found = [each for name in named for each in _searches(name)]
    run_ids = _RunIds()
    rows = [row for each in found for row in _readable_rows(*each, run_ids, alone=len(found) == 1)]
    varied = list(dict.fromkeys(column for row in rows for column in row if column not in {*FIRST, *LAST}))
    return pd.DataFrame(rows, columns=[*FIRST, *varied, *LAST])


def _searches(named: Searches) -> Iterator[tuple[SearchManifest, Folder]]:
    folder = named.folder if isinstance(named, ExperimentSpec) else folder_at(str(named))
    if folder.has_file(MANIFEST):
        yield SearchManifest.read(folder), folder
        return
    found = searches_in(folder)
    if not found:
        raise InputError(
            f"no search in {folder}; name the folder of an experiment, STORAGE/NAME, or of one search in it"
        )
    for manifest in found:
        yield manifest, folder / manifest.search_id


def _readable_rows(
    manifest: SearchManifest, folder: Folder, run_ids: _RunIds, *, alone: bool
) -> list[dict[str, object]]:
    """The rows of a search. One of several that cannot be read is left out and logged."""
    try:
        with explain_foreign(folder, "its journal cannot be read"):
            return list(_rows(manifest, folder, run_ids.of(manifest)))
    except InputError as error:
        if alone:
            raise
        log.warning("search %s is left out: %s", manifest.search_id, error)
        return []


def _rows(manifest: SearchManifest, folder: Folder, run_ids: Mapping[str, str]) -> Iterator[dict[str, object]]:
    for history in replay(Journal(folder).read()).values():
        yield {
            "experiment": manifest.experiment.name,
            "search": manifest.search_id,
            "trial": history.started.number,
            "branch": history.started.branch,
            **history.started.varied,
            **(history.best.scores if history.best else {}),
            **_measured(history),
            "run_id": run_ids.get(history.trial_id),
        }


def _measured(history: TrialHistory) -> dict[str, object]:
    return {
        "target_tokens": spent(history),
        "eval_loss": best_loss(history) if history.best else None,
        "train_loss": history.last.train_loss if history.last else None,
        "worker_seconds": worker_seconds(history),
        "state": str(history.state),
        "checkpoint": history.best.checkpoint if history.best else None,
        "parent": history.started.parent,
    }


class _RunIds:
    """MLflow's run ids. An MLflow that is away is asked once: a client would wait for it, minutes for each search."""

    def __init__(self) -> None:
        self._checked: set[str] = set()
        self._away: set[str] = set()

    def of(self, manifest: SearchManifest) -> dict[str, str]:
        """By trial id; empty if nothing was tracked or MLflow is away."""
        uri = tracking_uri(manifest.experiment)
        if uri in self._away or not may_have_runs(uri):
            return {}
        try:
            if uri not in self._checked:
                check_tracking(uri)
                self._checked.add(uri)
            return trial_run_ids(uri, manifest.experiment.mlflow_experiment, manifest.search_id)
        except (InputError, TrackingError) as error:
            self._away.add(uri)
            log.warning("search %s: MLflow run ids are missing: %s", manifest.search_id, error)
            return {}
