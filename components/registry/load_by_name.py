"""Finds the model that a person names: a registered version, a checkpoint, a package, or a base model."""

from __future__ import annotations

from pathlib import Path

from components.errors import InputError
from components.experiment.spec import ChatFormatSpec, ModelSpec
from components.models.base.load_base import resolve_model
from components.models.base.reference import BASE_FILE
from components.models.load_trained import LoadedModel, load_base, load_trained
from components.registry.version_tags import SCHEME
from components.registry.versions import download_package
from components.storage.open_folder import folder_at
from components.tracking.mlflow_access import check_tracking, tracking_uri


def load_by_name(name: str, *, chat_format: ChatFormatSpec | str = "auto", tracking: str | None = None) -> LoadedModel:
    """Loads a model, ready to reply or to be scored.

    Args:
        name: models:/NAME@ALIAS or models:/NAME/VERSION; a directory or URI; a hub id or a bundled model's name.
        chat_format: of a base model; trained ones have their own.
        tracking: URI of the registry; by default MLFLOW_TRACKING_URI, else mlflow.db in the working directory.

    Raises:
        InputError: there is no such model.
        ValueError: it cannot be loaded.
    """
    trained = trained_directory(name, tracking=tracking)
    return load_base(ModelSpec(path=name), chat_format) if trained is None else load_trained(trained)


def directory_by_name(name: str, *, tracking: str | None = None) -> Path:
    """The local directory of a model, downloaded if need be. Arguments and errors are those of load_by_name."""
    trained = trained_directory(name, tracking=tracking)
    if trained is not None:
        return trained
    directory = Path(name).expanduser()
    return directory.absolute() if directory.is_dir() else resolve_model(ModelSpec(path=name))


def trained_directory(name: str, *, tracking: str | None = None) -> Path | None:
    """The local directory of a registered version, a checkpoint or a package; None if the name is of neither of them."""
    if is_registered(name):
        uri = tracking_uri(given=tracking)
        check_tracking(uri)
        return download_package(name, uri)
    try:
        folder = folder_at(name)
        return folder.download() if folder.has_file(BASE_FILE) else None
    except OSError as error:
        raise InputError(f"{name}: {error}") from None


def is_registered(name: str) -> bool:
    """Whether a name is of a version in the registry."""
    return name.startswith(SCHEME)
