"""Which MLflow store, and whether it answers."""

from __future__ import annotations

import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from mlflow import MlflowClient

from components.experiment.spec import ExperimentSpec

CHECK_SECONDS = 5.0
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"


def tracking_uri(experiment: ExperimentSpec | None = None) -> str:
    """tracking.uri, else MLFLOW_TRACKING_URI, else a sqlite file here."""
    named = (experiment.tracking.uri if experiment else None) or os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{Path(DATABASE).absolute()}"


def without_secrets(uri: str) -> str:
    """For logs: user and password are left out."""
    return re.sub(r"//[^/@]*@", "//", uri)


def check_tracking(uri: str) -> None:
    """Raises ValueError, within seconds, if an MLflow server does not answer. A file needs no answer."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{re.sub(r'//[^/@]*@', '//', uri).rstrip('/')}/health", timeout=CHECK_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answers; what it thinks of /health is its own affair
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"tracking.uri={without_secrets(uri)}: no MLflow server answers there ({reason}); start it, or correct"
            " tracking.uri or MLFLOW_TRACKING_URI"
        ) from None


def open_store(uri: str) -> MlflowClient:
    """A client of its own, for the store and the registry; MLflow's process-wide settings are left alone."""
    # By default the client repeats for minutes before it says that nobody is there; the mirror repeats anyway.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The MLflow experiment of that name, made if need be; beside a sqlite file its artifacts lie in mlartifacts/."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS / name).absolute().as_uri()
    return str(client.create_experiment(name, artifact_location=location))
