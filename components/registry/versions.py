"""A candidate's version in the registry: found, made, downloaded. Nothing here moves an alias."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mlflow.exceptions import MlflowException

from components.data.trained_on import write_trained_on
from components.errors import InputError, VerificationError
from components.models.load_trained import package
from components.registry.candidate import RegistryCandidate
from components.registry.chat_model import PACKAGE
from components.registry.model_package import package_in, save_packaged
from components.registry.package_digest import PACKAGE_DIGEST_TAG, package_digest
from components.storage.size import tree_bytes
from components.tracking.mlflow_access import MLFLOW_ERRORS, check_model_name, download_version, is_final, reason_of

MODEL_FOLDER = "model"
BYTES_TAG = "turnwise.bytes"  # of all files of a version


def download_package(model_uri: str, uri: str) -> Path:
    """The package folder of a version, e.g. models:/NAME@champion. Raises InputError if there is none."""
    return package_in(download_files(model_uri, uri))


def download_files(model_uri: str, uri: str) -> Path:
    """The folder of a version. Raises InputError if there is none."""
    try:
        return download_version(model_uri, uri)
    except MLFLOW_ERRORS as error:
        raise InputError(f"{model_uri}: not to be had from the registry: {reason_of(error)}") from None


@contextlib.contextmanager
def files_of(model_uri: str, source: str, uri: str) -> Iterator[Path]:
    """The folder of a version: that of the registry, if it is on this machine, else a copy that is removed at the end.

    Raises InputError if its files are gone, and what MLflow raises if it is away.
    """
    with tempfile.TemporaryDirectory(prefix="turnwise-version-") as scratch:
        try:
            files = fetch_files(model_uri, source, uri, Path(scratch))
        except MlflowException as error:
            if not is_final(error):
                raise
            raise InputError(f"{model_uri}: not to be had from the registry: {reason_of(error)}") from None
        yield files


def fetch_files(model_uri: str, source: str, uri: str, scratch: Path) -> Path:
    """The folder of a version: that of the registry, if it is on this machine, else one in `scratch`.

    Raises what MLflow raises.
    """
    return local_folder(source) or download_version(model_uri, uri, scratch / "version")


def local_folder(source: str) -> Path | None:
    """The folder of a version's files, by their place in the registry; None if it is not on this machine."""
    parts = urlsplit(source)
    folder = Path(unquote(parts.path))
    return folder if parts.scheme in ("", "file") and folder.is_absolute() and folder.is_dir() else None


def find_version(candidate: RegistryCandidate) -> str | None:
    """The number of the version that an earlier attempt made of this candidate."""
    for known in candidate.client.search_model_versions(f"name = '{candidate.name}'"):
        if candidate.identity.items() <= known.tags.items():
            return str(known.version)
    return None


def create_version(candidate: RegistryCandidate) -> str:
    """Packages, uploads, and then registers the uploaded files. Returns the version's number; no alias points at it."""
    client, run_id = candidate.client, candidate.runs.trial_run(candidate.trial.trial_id)
    # A folder for each step: the files of a version never change, whatever else the trial's run gets.
    files = f"{MODEL_FOLDER}/step_{candidate.report.step:06d}"
    with tempfile.TemporaryDirectory(prefix="turnwise-package-") as scratch:
        try:
            package(candidate.checkpoint, Path(scratch) / PACKAGE)
            write_trained_on(candidate.dataset.train, Path(scratch) / PACKAGE)
            digest = package_digest(Path(scratch) / PACKAGE)
            save_packaged(Path(scratch) / PACKAGE, Path(scratch) / MODEL_FOLDER)
            size = tree_bytes(Path(scratch) / MODEL_FOLDER)
        except ValueError as error:
            raise VerificationError(f"{candidate.checkpoint} cannot be packaged: {error}") from None
        client.log_artifacts(run_id, str(Path(scratch) / MODEL_FOLDER), files)
    ensure_registered_model(candidate)
    source = f"{client.get_run(run_id).info.artifact_uri}/{files}"
    tags = {**candidate.lineage, PACKAGE_DIGEST_TAG: digest, BYTES_TAG: str(size)}
    return str(client.create_model_version(candidate.name, source, run_id, tags=tags).version)


def ensure_registered_model(candidate: RegistryCandidate) -> None:
    """Creates the registered model unless another search has, before or at the same time.

    Raises VerificationError if its name is taken by something else.
    """
    try:
        candidate.client.create_registered_model(candidate.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        try:
            check_model_name(candidate.uri, candidate.name)
        except ValueError as problem:
            raise VerificationError(str(problem)) from None


@contextlib.contextmanager
def explain_deletion(candidate: RegistryCandidate, number: str) -> Iterator[None]:
    """Inside, MLflow's refusal is a VerificationError if somebody has deleted the version meanwhile."""
    try:
        yield
    except MlflowException as error:
        if not is_final(error) or find_version(candidate) == number:
            raise
        raise VerificationError(f"{candidate.name} version {number} was deleted while it was proven") from None
