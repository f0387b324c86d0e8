"""What a person does with registered versions by hand: looks at them, promotes one, takes that back.

An alias is given to a proven version only, and only if its files are still those that were proven. Every move is a tag.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from mlflow import MlflowClient
from pydantic import TypeAdapter, ValidationError

from components.errors import InputError, TrackingError, VerificationError
from components.experiment.spec import CHALLENGER, Name, RegistrySpec
from components.registry.alias_moves import BEFORE_TAG, alias_holder, give_alias, take_alias_back
from components.registry.model_package import package_in
from components.registry.package_digest import PACKAGE_DIGEST_TAG, check_package
from components.registry.registered_version import registered_version
from components.registry.version_record import VersionRecord, record_of, records_of
from components.registry.version_tags import SCHEME
from components.registry.versions import files_of
from components.storage.uri import without_secrets
from components.tracking.find_runs import may_have_runs
from components.tracking.mlflow_access import MLFLOW_ERRORS, check_tracking, is_final, open_store, reason_of

MOST_LETTERS = 500  # of a reason


@dataclass(frozen=True)
class VersionShelf:
    """The versions of a registry. Its methods raise InputError for what is not there, TrackingError if MLflow is away."""

    uri: str

    @property
    def client(self) -> MlflowClient:
        return open_store(self.uri)

    def list(self, name: str) -> list[VersionRecord]:
        """The newest first."""
        name = _checked_name(name)
        with self.answering(name):
            return records_of(self.client, name)

    def get(self, named: str) -> VersionRecord:
        """`named`: NAME@ALIAS or NAME/7, with or without models:/ before it."""
        found = registered_version(f"{SCHEME}{named.removeprefix(SCHEME)}", self.uri)
        with self.answering(named):
            aliases = self.client.get_registered_model(found.name).aliases
            return record_of(self.client.get_model_version(found.name, found.number), aliases)

    @contextlib.contextmanager
    def answering(self, what: str) -> Iterator[None]:
        """Inside, what MLflow raises is an error for people."""
        try:
            yield
        except MLFLOW_ERRORS as error:
            if is_final(error):
                raise InputError(f"{what}: the registry at {self.place} says: {reason_of(error)}") from None
            raise TrackingError(f"{self.place}: no MLflow answers ({reason_of(error)})") from None

    @property
    def place(self) -> str:
        return without_secrets(self.uri)


def open_shelf(uri: str) -> VersionShelf:
    """Raises InputError if there is no registry at `uri`."""
    if not may_have_runs(uri):
        raise InputError(
            f"{without_secrets(uri)}: there is no such registry; work in the directory of the search, or give --tracking-uri"
        )
    check_tracking(uri)
    return VersionShelf(uri)


def promote(shelf: VersionShelf, named: str, reason: str, alias: str) -> str:
    """Gives an alias to a proven version. Returns what was done, in a sentence.

    Raises InputError, and VerificationError if it is not proven, or is no longer what was proven.
    """
    reason, alias = checked_reason(reason), checked_alias(alias)
    record = shelf.get(named)
    check_proven(shelf, record)
    with shelf.answering(named):
        holder = alias_holder(shelf.client, record.name, alias)
        if holder == record.version:
            raise InputError(f"{record.uri} holds the alias {alias} already")
        if CHALLENGER in record.aliases:
            shelf.client.delete_registered_model_alias(record.name, CHALLENGER)
        give_alias(shelf.client, record.name, alias, record.version, holder, reason)
    before = "which no version held" if holder is None else f"which version {holder} held; that one is @previous now"
    return f"{record.uri} holds the alias {alias}, {before}"


def roll_back(shelf: VersionShelf, name: str, reason: str, alias: str) -> str:
    """Gives an alias back to the version that held it before its holder was promoted. Returns and raises as `promote`."""
    reason, alias, name = checked_reason(reason), checked_alias(alias), _checked_name(name)
    holder = shelf.get(f"{name}@{alias}")
    before = holder.tags.get(BEFORE_TAG.format(alias))
    if before is None:
        raise InputError(
            f"{holder.uri} holds the alias {alias}, and nothing says which version held it before; choose one of registry.py"
            f" list {name}, and promote that"
        )
    target = shelf.get(f"{name}/{before}")
    check_proven(shelf, target)
    with shelf.answering(name):
        take_alias_back(shelf.client, name, alias, target.version, holder.version, reason)
    return f"{target.uri} holds the alias {alias} again; version {holder.version} is @previous now"


def check_proven(shelf: VersionShelf, record: VersionRecord) -> None:
    """Raises VerificationError unless a version was proven and its files are those that were. Downloads them."""
    digest = record.tags.get(PACKAGE_DIGEST_TAG)
    if record.proven is None or digest is None:
        raise VerificationError(
            f"{record.uri} gets no alias: nothing says that it was proven; do that first, with registry.py prove"
            f" {record.name}/{record.version}"
        )
    try:
        with files_of(record.uri, record.source, shelf.uri) as folder:
            check_package(package_in(folder), digest, record.uri)
    except InputError as error:
        raise VerificationError(f"{record.uri} gets no alias: {error}") from None


def checked_reason(reason: str) -> str:
    """Returns it without blanks around. Raises InputError for none, or what is no line of a tag."""
    reason = reason.strip()
    if not reason or len(reason) > MOST_LETTERS or not reason.isprintable():
        raise InputError(
            f'--reason: takes a line of 1 to {MOST_LETTERS} visible characters, e.g. "it answers customers more briefly"'
        )
    return reason


def checked_alias(alias: str) -> str:
    """Raises InputError for an alias that no champion can have."""
    try:
        return RegistrySpec(alias=alias).alias
    except ValidationError as error:
        raise InputError(f"--alias {alias}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError:
        raise InputError(
            f"{name}: is no name of a registered model: letters, digits, '.', '_' and '-'; give it without version and alias"
        ) from None
