"""Fills MLflow from the folder of a search whose server was away, or which began without one."""

from __future__ import annotations

import contextlib

from components.errors import InputError, TrackingError
from components.experiment.spec import ExperimentSpec
from components.records.driver_presence import DriverHeartbeat
from components.records.events import TrialEvent
from components.records.journal import Journal
from components.records.manifest import SearchManifest
from components.records.on_message import OnMessage, ignore_message
from components.records.outcome import Outcome
from components.records.tracked_search import TrackedSearch
from components.search.find import NEWEST, find_search
from components.search.record_end import record_end
from components.search.search_lock import SearchLock
from components.search.tracked_runs import log_inputs, open_runs
from components.search.write_reports import kept_summary
from components.storage.folder import Folder
from components.storage.retry import StorageError
from components.storage.uri import without_secrets
from components.tracking.journal_proof import compare_with_journal
from components.tracking.mlflow_access import (
    MLFLOW_ERRORS,
    check_tracking,
    is_final,
    reason_of,
    tracking_uri,
)
from components.tracking.mlflow_runs import SearchRuns
from components.tracking.record_groups import RecordGroups


def sync_search(experiment: ExperimentSpec, search_id: str = NEWEST, *, on_message: OnMessage = ignore_message) -> None:
    """Writes what MLflow misses of a search: runs, points, data, reports and outcome. What is there stays as it is.

    A search that has come to its end, and of which only the record was missing, is finished by it. `experiment.tracking` says
    which server. `on_message` gets what was done and how MLflow compares with the journal.

    Raises:
        InputError: there is no such search, it is running, or an earlier version began it.
        TrackingError: MLflow is away; a second call goes on.
    """
    manifest = find_search(experiment, search_id)
    folder, uri = experiment.folder / manifest.search_id, tracking_uri(experiment)
    try:
        tracked = TrackedSearch.read(folder, experiment.tracking)
    except FileNotFoundError:
        raise InputError(
            f"--sync {manifest.search_id}: {folder} does not say what MLflow is to hold, since an earlier version of Turnwise"
            " began the search; go on with it by --resume, which fills MLflow, too"
        ) from None
    with contextlib.closing(SearchLock(experiment.folder)) as lock:
        lock.take(folder)
        try:
            check_tracking(uri)
            runs = open_runs(tracked, uri, manifest.search_id)
            log_inputs(runs, tracked, folder)
            events = Journal(folder).read()
            _deliver(runs, events, on_message)
            _end(runs, folder, manifest, events, on_message)
        except StorageError:
            raise
        except (InputError, *MLFLOW_ERRORS) as error:
            reason = str(error) if isinstance(error, InputError) else f"{without_secrets(uri)}: {reason_of(error)}"
            raise TrackingError(f"{reason}; the same command goes on where it stopped") from None


def _deliver(runs: SearchRuns, events: list[TrialEvent], on_message: OnMessage) -> None:
    groups = RecordGroups(events)
    while groups:
        group = groups.take()
        try:
            runs.apply_together(group)
        except MLFLOW_ERRORS as error:
            if not is_final(error):
                raise
            _deliver_singly(runs, group, on_message)
    on_message(f"search {runs.search_id}: MLflow has {len(events)} records of its journal, {runs.link}")


def _deliver_singly(runs: SearchRuns, group: list[TrialEvent], on_message: OnMessage) -> None:
    """Writes those of the records that MLflow does not refuse."""
    for event in group:
        runs.forget(event.trial_id)
        try:
            runs.apply(event)
        except MLFLOW_ERRORS as error:
            if not is_final(error):
                raise
            on_message(f"MLflow refuses a record of trial {event.trial_id} for good: {reason_of(error)}")


def _end(
    runs: SearchRuns, folder: Folder, manifest: SearchManifest, events: list[TrialEvent], on_message: OnMessage
) -> None:
    summary = kept_summary(folder)
    if summary is not None:
        record_end(runs, folder, summary, events, on_message)
        manifest.model_copy(update={"finished": True}).write(folder)
        return
    on_message(compare_with_journal(runs, events).sentence)
    heartbeat = DriverHeartbeat.read(folder)
    runs.end_search((heartbeat and heartbeat.outcome) or Outcome.INTERRUPTED.value)
    if not manifest.finished:
        on_message(
            f"search {manifest.search_id} can go on, e.g. to its registration, with --resume {manifest.search_id}"
        )
