"""Deletes versions that nobody needs: no alias points at them, and no search that can go on made them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

from components.errors import InputError
from components.records.outcome import Outcome
from components.registry.manage_versions import VersionShelf
from components.registry.version_record import VersionRecord
from components.registry.versions import MODEL_FOLDER
from components.tracking.mlflow_access import MLFLOW_ERRORS, is_final, reason_of
from components.tracking.mlflow_runs import PARENT_TAG, SEARCH_TAG, STATE_TAG


@dataclass(frozen=True, kw_only=True)
class PrunePlan:
    """`kept`: each version that stays, with the reason."""

    kept: tuple[tuple[VersionRecord, str], ...]
    unneeded: tuple[VersionRecord, ...]

    @property
    def bytes(self) -> int:
        return sum(record.bytes or 0 for record in self.unneeded)


def plan_prune(shelf: VersionShelf, name: str, keep: int) -> PrunePlan:
    """Says which versions are not needed. Changes nothing. Raises InputError for a number below 0."""
    if keep < 0:
        raise InputError(f"--keep {keep}: must be 0 or more")
    kept, unneeded = [], []
    with shelf.answering(name):
        for place, record in enumerate(shelf.list(name)):
            reason = f"one of the {keep} newest" if place < keep else _needed_because(shelf.client, record)
            if reason:
                kept.append((record, reason))
            else:
                unneeded.append(record)
    return PrunePlan(kept=tuple(kept), unneeded=tuple(unneeded))


def prune(shelf: VersionShelf, records: Sequence[VersionRecord]) -> list[str]:
    """Deletes these versions and their files. Returns a sentence for each; one that got an alias meanwhile stays."""
    return [_delete(shelf, record) for record in records]


def _needed_because(client: MlflowClient, record: VersionRecord) -> str:
    """Returns "" if nothing needs it."""
    if record.aliases:
        return f"holds the alias {', '.join(record.aliases)}"
    if record.run_id is None or SEARCH_TAG not in record.tags:
        return "no search made it"
    trial = _run_if_there(client, record.run_id)
    search = None if trial is None else _run_if_there(client, trial.data.tags.get(PARENT_TAG, ""))
    if search is None or _has_ended(search):
        return ""
    return f"search {record.tags[SEARCH_TAG]} can still go on"


def _run_if_there(client: MlflowClient, run_id: str) -> Run | None:
    """None for a run that was deleted."""
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if not is_final(error):
            raise
        return None
    return None if run.info.lifecycle_stage == "deleted" else run


def _has_ended(search: Run) -> bool:
    """Whether it has an outcome with which it cannot go on. The state of one that goes on again is of its earlier end."""
    state = search.data.tags.get(STATE_TAG)
    return search.info.status != "RUNNING" and state in {end.value for end in Outcome if not end.resumable}


def _delete(shelf: VersionShelf, record: VersionRecord) -> str:
    """The version first: files that are left harm nobody, and a version without files would."""
    client, number = shelf.client, record.version
    with shelf.answering(record.uri):
        aliases = client.get_registered_model(record.name).aliases
        if taken := [alias for alias, holder in aliases.items() if str(holder) == number]:
            return f"version {number} stays: it got the alias {', '.join(taken)} meanwhile"
        client.delete_model_version(record.name, number)
        shared = any(other.source == record.source for other in shelf.list(record.name))
        run = _run_if_there(client, record.run_id or "")
    if shared or run is None or not record.source.startswith(f"{run.info.artifact_uri}/{MODEL_FOLDER}/"):
        return f"version {number} is deleted; its files stay at {record.source}: others may use them"
    try:
        get_artifact_repository(record.source, tracking_uri=shelf.uri).delete_artifacts()
    except (*MLFLOW_ERRORS, NotImplementedError) as error:
        return f"version {number} is deleted; its files stay at {record.source}: {reason_of(error)}"
    return f"version {number} is deleted with its files"
