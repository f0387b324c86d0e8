"""The MLflow server or database of a search: which one, whether it answers, and what of its errors may be shown."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import mlflow.artifacts
import sqlalchemy
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_STATE
from mlflow.store.db.db_types import DATABASE_ENGINES
from requests.exceptions import RequestException

from components.errors import InputError
from components.experiment.spec import ExperimentSpec
from components.storage.uri import check_no_secret, without_secrets

CHECK_SECONDS = 5.0
_MAX_FOLDER_CHARACTERS = 60  # a file system's limit is 255 bytes, and a character has up to four
VARIABLE = "MLFLOW_TRACKING_URI"
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
MLFLOW_ERRORS = (MlflowException, RequestException, OSError)
# Codes of errors that a retry would meet again: MLflow has understood the request and refused it.
FINAL_ERROR_CODES = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


def tracking_uri(experiment: ExperimentSpec | None = None, *, given: str | None = None) -> str:
    """Returns what is `given`, else tracking.uri, else MLFLOW_TRACKING_URI, else a sqlite file in the working directory.

    Raises InputError for one with a password in it, which would be written into records and reports.
    """
    named = given or (experiment.tracking.uri if experiment else None)
    where, uri = ("the tracking URI", named) if named else (VARIABLE, os.environ.get(VARIABLE))
    try:
        return check_no_secret(uri) if uri else f"sqlite:///{Path(DATABASE).absolute()}"
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def reason_of(error: Exception) -> str:
    """Returns what MLflow or the network says, in one line, without secrets."""
    root = _root(error)
    if isinstance(root, OSError):
        # E.g. `Connection refused`, of which layers of libraries make a paragraph.
        return without_secrets(root.strerror or str(root))
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])


def _root(error: BaseException) -> BaseException:
    """Returns the first of the errors that led to this one, however each was wrapped into the next."""
    seen = [error]
    while True:
        wrapped = (seen[-1].__cause__, seen[-1].__context__, *seen[-1].args)
        inner = next((found for found in wrapped if isinstance(found, BaseException) and found not in seen), None)
        if inner is None:
            return seen[-1]
        seen.append(inner)


def is_final(error: Exception) -> bool:
    """Whether MLflow has refused, so that a retry cannot help. A server or network that is away may come back."""
    return isinstance(error, MlflowException) and error.error_code in FINAL_ERROR_CODES


def check_tracking(uri: str) -> None:
    """Raises InputError, within seconds, if there is no MLflow at `uri`."""
    try:
        if uri.startswith(("http://", "https://")):
            _check_server(uri)
        elif urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
            _check_database(uri)
        else:
            open_store(uri).search_experiments(max_results=1)
    except (*MLFLOW_ERRORS, sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise InputError(
            f"tracking.uri={without_secrets(uri)}: no MLflow answers there ({reason_of(error)}); start it, or correct"
            " tracking.uri or MLFLOW_TRACKING_URI"
        ) from None


def open_store(uri: str) -> MlflowClient:
    """Returns a client for the runs and the registry, apart from MLflow's global one."""
    _quiet()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """Returns the id of the MLflow experiment, which is created if there is none.

    Beside a sqlite file, the artifacts are stored in mlartifacts/.
    """
    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise MlflowException(
            f"the MLflow experiment {name} is deleted; restore it (mlflow experiments restore --experiment-id"
            f" {found.experiment_id}), or choose another tracking.experiment",
            error_code=INVALID_STATE,
        )
    if found is not None:
        return str(found.experiment_id)
    location = None
    if uri.startswith("sqlite:///"):
        location = (Path(uri.removeprefix("sqlite:///")).parent / ARTIFACTS / _folder_for(name)).absolute().as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        made = client.get_experiment_by_name(name)  # by another search, at the same time
        if made is None:
            raise
        return str(made.experiment_id)


def check_model_name(uri: str, name: str) -> None:
    """Raises InputError if the registry at `uri` cannot have a registered model of this name."""
    try:
        taken = list(open_store(uri).search_prompts(filter_string=f"name = '{name}'", max_results=1))
    except MLFLOW_ERRORS as error:
        if not is_final(error):
            raise InputError(f"registry.name={name}: the registry does not answer: {reason_of(error)}") from None
        taken = []  # this registry has no prompts
    if taken:
        raise InputError(
            f"registry.name={name}: a prompt of this registry has that name, and MLflow has one for both; choose another"
            " registry.name"
        )


def _folder_for(name: str) -> str:
    """Returns a folder's name for an experiment: its own, or with a digest if that is too long or no name of a folder."""
    plain = re.sub(r"[^\w .-]", "_", name)[:_MAX_FOLDER_CHARACTERS]
    if plain == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def parse_model_uri(model_uri: str) -> tuple[str, str | None, str | None]:
    """Returns (name, alias, version), of which one of the last two is None. Raises InputError for another form."""
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if named is None:
        raise InputError(f"{model_uri}: a registered model is models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = named.groups()
    return name, alias, version


def download_version(model_uri: str, uri: str, target: Path | None = None, part: str = "") -> Path:
    """Returns the folder of models:/NAME@ALIAS or models:/NAME/VERSION, from the registry at `uri`.

    Without a target, that is the registry's own folder if it is on this machine, else a new temporary one. Raises InputError
    if the name has another form, and what MLflow raises. (MLflow's own download would look a version up in the process's
    default registry.)

    Args:
        part: download only this folder of the version.
    """
    name, alias, version = parse_model_uri(model_uri)
    client = open_store(uri)
    version = version or client.get_model_version_by_alias(name, alias).version
    source = client.get_model_version_download_uri(name, version)
    if target is not None:
        target.mkdir(parents=True)
    wanted = f"{source.rstrip('/')}/{part}" if part else source
    downloaded = mlflow.artifacts.download_artifacts(
        wanted, dst_path=None if target is None else str(target), tracking_uri=uri
    )
    return Path(downloaded).parent if part else Path(downloaded)


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{without_secrets(uri).rstrip('/')}/health", timeout=CHECK_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # a server that answers, whatever its status for /health


def _check_database(uri: str) -> None:
    """Connects and reads. MLflow itself would retry for two minutes."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _quiet() -> None:
    """Sets what MLflow reads from the environment only, not from a client's settings. A value that is set already stays."""
    # By default MLflow repeats a request for minutes, and repeats one whose answer was lost. JournalSync retries by itself,
    # after it has asked what has arrived.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
