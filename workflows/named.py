"""A model as people name it on a command line: registered version, checkpoint, package, or base model."""

from __future__ import annotations

from pathlib import Path

from components.experiment.spec import ModelSpec
from components.models.base.reference import BASE_FILE
from components.models.load_trained import LoadedModel, load_base, load_trained
from components.registry.versions import download_package
from components.storage.open import folder_at
from components.tracking.mlflow_client import check_tracking, tracking_uri
from workflows.cli import REGISTERED


def load_named(name: str, *, chat_format: str = "auto", tracking: str | None = None) -> LoadedModel:
    """Ready to talk or to be scored. Raises ValueError if there is no such model.

    Args:
        name: models:/NAME@ALIAS or models:/NAME/VERSION; a directory; a hub id or a fetched model's name.
        chat_format: of a base model; what was trained knows its own.
        tracking: where the registry is; by default MLFLOW_TRACKING_URI, else mlflow.db here.
    """
    if name.startswith(REGISTERED):
        uri = tracking or tracking_uri()
        check_tracking(uri)
        return load_trained(download_package(name, uri))
    directory = trained_at(name)
    if directory is not None:
        return load_trained(directory)
    return load_base(ModelSpec(path=name), chat_format)


def trained_at(name: str) -> Path | None:
    """The folder, on this machine, of a checkpoint or package that a path or URI names; None if it names neither."""
    try:
        folder = folder_at(name)
        if not folder.has_file(BASE_FILE):
            return None
        return folder.download()
    except OSError as error:
        raise ValueError(f"{name}: {error}") from None
