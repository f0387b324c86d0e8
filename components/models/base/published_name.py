"""The name by which other machines know a base model, for adapters that are exported."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from components.experiment.spec import ModelSpec
from components.models.base.bundled_models import BUNDLED_MODELS
from components.storage.uri import is_remote

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?")


@dataclass(frozen=True, kw_only=True)
class PublishedName:
    """A hub id with the commit that was trained on, if that is known."""

    path: str
    revision: str | None = None


def published_name(model: ModelSpec, directory: Path) -> PublishedName | None:
    """Returns the hub's name of a model, None for one that is a directory, in a bucket or in a wheel.

    Args:
        directory: where it lies here; the hub's cache calls it by its commit.
    """
    if model.path in BUNDLED_MODELS or is_remote(model.path) or Path(model.path).expanduser().is_dir():
        return None
    if HUB_ID.fullmatch(model.path) is None:  # a directory of another machine
        return None
    commit = directory.name if directory.parent.name == "snapshots" else None
    return PublishedName(path=model.path, revision=commit or model.revision)
