"""Which MLflow store, whether it answers, and what its errors may say aloud."""

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

from components.experiment.spec import ExperimentSpec

CHECK_SECONDS = 5.0
_MOST_FOLDER_LETTERS = 60  # 255 bytes are a file system's limit, and a letter has up to four
DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
MLFLOW_ERRORS = (MlflowException, RequestException, OSError)
# What MLflow says when it has understood, and will answer the same for ever.
FINAL = {
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "MALFORMED_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


def tracking_uri(experiment: ExperimentSpec | None = None) -> str:
    """tracking.uri, else MLFLOW_TRACKING_URI, else a sqlite file here."""
    named = (experiment.tracking.uri if experiment else None) or os.environ.get("MLFLOW_TRACKING_URI")
    return named or f"sqlite:///{Path(DATABASE).absolute()}"


def without_secrets(text: str) -> str:
    """For logs and messages: users and passwords of all URIs in a text are left out."""
    return re.sub(r"//[^/\s]*@", "//", text)


def reason_of(error: Exception) -> str:
    """What MLflow or the network says, in a line that is fit to be shown."""
    root = _root(error)
    if isinstance(root, OSError):
        return without_secrets(
            root.strerror or str(root)
        )  # `Connection refused`: layers of libraries make it a paragraph
    return without_secrets((str(error).strip().splitlines() or [type(error).__name__])[0])


def _root(error: BaseException) -> BaseException:
    """The first of the errors that led to this one, by whatever way each was wrapped into the next."""
    seen = [error]
    while True:
        wrapped = (seen[-1].__cause__, seen[-1].__context__, *seen[-1].args)
        inner = next((found for found in wrapped if isinstance(found, BaseException) and found not in seen), None)
        if inner is None:
            return seen[-1]
        seen.append(inner)


def is_final(error: Exception) -> bool:
    """Whether MLflow has refused, so that asking again is in vain; a server or network that is away may come back."""
    return isinstance(error, MlflowException) and error.error_code in FINAL


def check_tracking(uri: str) -> None:
    """Raises ValueError, within seconds, if there is no MLflow at `uri`."""
    try:
        if uri.startswith(("http://", "https://")):
            _check_server(uri)
        elif urlsplit(uri).scheme.partition("+")[0] in DATABASE_ENGINES:
            _check_database(uri)
        else:
            open_store(uri).search_experiments(max_results=1)
    except (*MLFLOW_ERRORS, sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise ValueError(
            f"tracking.uri={without_secrets(uri)}: no MLflow answers there ({reason_of(error)}); start it, or correct"
            " tracking.uri or MLFLOW_TRACKING_URI"
        ) from None


def open_store(uri: str) -> MlflowClient:
    """A client of its own, for the store and the registry."""
    _quiet()
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, uri: str) -> str:
    """The MLflow experiment of that name, made if need be; beside a sqlite file its artifacts lie in mlartifacts/."""
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
    """Raises ValueError if the registry at `uri` cannot have a registered model of this name."""
    try:
        taken = list(open_store(uri).search_prompts(filter_string=f"name = '{name}'", max_results=1))
    except MLFLOW_ERRORS as error:
        if not is_final(error):
            raise ValueError(f"registry.name={name}: the registry does not answer: {reason_of(error)}") from None
        taken = []  # a registry that knows no prompts
    if taken:
        raise ValueError(
            f"registry.name={name}: a prompt of this registry has that name, and MLflow has one for both; choose another"
            " registry.name"
        )


def _folder_for(name: str) -> str:
    """One folder for any experiment's name: a name that is none, or too long for one, gets a digest in place of the rest."""
    plain = re.sub(r"[^\w .-]", "_", name)[:_MOST_FOLDER_LETTERS]
    if plain == name and not name.startswith("."):
        return name
    return f"{plain.lstrip('.')}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def download_version(model_uri: str, uri: str, target: Path | None = None, part: str = "") -> Path:
    """The folder of models:/NAME@ALIAS or models:/NAME/VERSION, from the registry at `uri`. `part`: only this folder of it.

    By default where it lies, if that is on this machine, else in a new temporary folder. Raises ValueError if the name has
    another form, and what MLflow raises. (MLflow's own download would look a version up in the process's default registry.)
    """
    named = re.fullmatch(r"models:/([^/@]+)(?:@([^/@]+)|/(\d+))", model_uri)
    if named is None:
        raise ValueError(f"{model_uri}: a registered model is models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, version = named.groups()
    client = open_store(uri)
    version = version or client.get_model_version_by_alias(name, alias).version
    source = client.get_model_version_download_uri(name, version)
    if target is not None:
        target.mkdir(parents=True)
    wanted = f"{source.rstrip('/')}/{part}" if part else source
    brought = mlflow.artifacts.download_artifacts(
        wanted, dst_path=None if target is None else str(target), tracking_uri=uri
    )
    return Path(brought).parent if part else Path(brought)


def _check_server(uri: str) -> None:
    try:
        with urllib.request.urlopen(f"{without_secrets(uri).rstrip('/')}/health", timeout=CHECK_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answers; what it thinks of /health is its own affair


def _check_database(uri: str) -> None:
    """Connects and reads. MLflow itself would go on trying for two minutes."""
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _quiet() -> None:
    """MLflow has no settings of a client's own for these, only the process's; who has set them otherwise is heard."""
    # By default a request is repeated for minutes, and one whose answer was lost is done twice. The mirror repeats by
    # itself, and asks before it does what has arrived.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
