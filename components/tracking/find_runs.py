"""Finds the MLflow runs of a search that was tracked before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run

from components.errors import TrackingError
from components.storage.uri import without_secrets
from components.tracking.mlflow_access import MLFLOW_ERRORS, open_store, reason_of
from components.tracking.mlflow_runs import SEARCH_OF_TRIAL_TAG, TRIAL_TAG

SQLITE = "sqlite:///"
MAX_RUNS = 1000  # of one page; MLflow has a limit


def may_have_runs(uri: str) -> bool:
    """False for an SQLite file that does not exist, which a client would create."""
    return not uri.startswith(SQLITE) or Path(uri.removeprefix(SQLITE)).exists()


def trial_run_ids(uri: str, mlflow_experiment: str, search_id: str) -> dict[str, str]:
    """Run ids by trial id; empty if nothing of the search was tracked there. Raises TrackingError if MLflow is away.

    Creates the SQLite file if there is none: ask may_have_runs first.
    """
    try:
        client = open_store(uri)
        experiment = client.get_experiment_by_name(mlflow_experiment)
        if experiment is None:
            return {}
        condition = f"tags.`{SEARCH_OF_TRIAL_TAG}` = '{search_id}'"
        runs = list(runs_where(client, experiment.experiment_id, condition))
    except MLFLOW_ERRORS as error:
        raise TrackingError(f"tracking.uri={without_secrets(uri)}: no MLflow answers ({reason_of(error)})") from None
    return {str(run.data.tags[TRIAL_TAG]): str(run.info.run_id) for run in runs}


def runs_where(client: MlflowClient, experiment_id: str, condition: str) -> Iterator[Run]:
    """Yields all runs of an MLflow experiment for which the condition holds. Raises what MLflow raises."""
    token = None
    while True:
        page = client.search_runs([experiment_id], condition, max_results=MAX_RUNS, page_token=token)
        yield from page
        token = page.token
        if not token:
            return
