"""Tags that are written to a registered version after it was made."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow import MlflowClient

from components.errors import InputError
from components.tracking.mlflow_access import MLFLOW_ERRORS, open_store, parse_model_uri, reason_of

SCHEME = "models:/"


def tag_version(model_uri: str, tags: Mapping[str, str], uri: str) -> str:
    """Sets tags on models:/NAME/VERSION or models:/NAME@ALIAS. Returns the version's number.

    Raises InputError if MLflow does not take them.
    """
    try:
        return _tag(open_store(uri), model_uri, tags)
    except MLFLOW_ERRORS as error:
        raise InputError(f"{model_uri}: MLflow did not take the tags {dict(tags)}: {reason_of(error)}") from None


def _tag(client: MlflowClient, model_uri: str, tags: Mapping[str, str]) -> str:
    name, alias, version = parse_model_uri(model_uri)
    version = version or str(client.get_model_version_by_alias(name, alias).version)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    return version
