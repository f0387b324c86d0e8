"""Gives an alias to a version, and writes on the versions what was done: when, by whom, and why.

The version that held the alias keeps the alias `previous`, and its number is a tag of the one that took its place: by that
tag an alias goes back. Tags come first and the alias last, so that it never points at a version without the reason.
"""

from __future__ import annotations

import time

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.experiment.spec import PREVIOUS
from components.records.user_name import user_name
from components.tracking.mlflow_access import is_final

PROMOTED_TAG = "turnwise.promoted_because"  # a line for each time that the version got an alias
ROLLED_BACK_TAG = "turnwise.rolled_back_because"  # a line for each time that an alias went back to the version before
BEFORE_TAG = "turnwise.before.{}"  # of an alias: which version held it when this one was promoted


def alias_holder(client: MlflowClient, name: str, alias: str) -> str | None:
    """The version that holds an alias. Raises if MLflow is away: not to know is not to have none."""
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if not is_final(error):
            raise
        return None


def give_alias(client: MlflowClient, name: str, alias: str, number: str, holder: str | None, because: str) -> None:
    """Moves an alias from the version that holds it, if one does, to another one, which replaces it."""
    if holder == number:
        return
    if holder is None:
        client.delete_model_version_tag(name, number, BEFORE_TAG.format(alias))
    else:
        client.set_model_version_tag(name, number, BEFORE_TAG.format(alias), holder)
    place = f"{alias}, which no version held" if holder is None else f"{alias} in place of version {holder}"
    _add_line(client, name, number, PROMOTED_TAG, f"{place}: {because}")
    _move(client, name, alias, number, holder)


def take_alias_back(client: MlflowClient, name: str, alias: str, number: str, holder: str, because: str) -> None:
    """Moves an alias back to the version that held it before its holder did. A second one goes back further."""
    _add_line(client, name, holder, ROLLED_BACK_TAG, f"{alias} goes back to version {number}: {because}")
    _add_line(client, name, number, PROMOTED_TAG, f"{alias} back from version {holder}: {because}")
    _move(client, name, alias, number, holder)


def now_in_words() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _move(client: MlflowClient, name: str, alias: str, number: str, holder: str | None) -> None:
    if holder is not None:
        client.set_registered_model_alias(name, PREVIOUS, holder)
    client.set_registered_model_alias(name, alias, number)


def _add_line(client: MlflowClient, name: str, number: str, tag: str, text: str) -> None:
    before = client.get_model_version(name, number).tags.get(tag)
    line = f"{now_in_words()}, {user_name()}: {text}"
    client.set_model_version_tag(name, number, tag, line if before is None else f"{before}\n{line}")
