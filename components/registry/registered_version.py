"""A registered version by its name: which one an alias means now, and what its tags say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from components.errors import InputError
from components.registry.model_package import package_in
from components.registry.package_digest import PACKAGE_DIGEST_TAG, check_package
from components.registry.version_tags import SCHEME
from components.registry.versions import fetch_files
from components.tracking.mlflow_access import MLFLOW_ERRORS, open_store, parse_model_uri, reason_of


@dataclass(frozen=True, kw_only=True)
class RegisteredVersion:
    """`digest` is that of the package, as registered; None for versions of before it was a tag. `source`: of its files."""

    name: str
    number: str
    source: str
    digest: str | None
    uri: str

    def download(self, folder: Path) -> Path:
        """Returns the folder of its package: the registry's own if that is on this machine, else one in `folder`.

        Raises InputError if it cannot be downloaded, or is not what was registered.
        """
        named = f"{SCHEME}{self.name}/{self.number}"
        try:
            version = fetch_files(named, self.source, self.uri, folder)
        except MLFLOW_ERRORS as error:
            raise InputError(f"{named}: cannot be downloaded from the registry: {reason_of(error)}") from None
        package = package_in(version)
        if self.digest is not None:
            check_package(package, self.digest, named)
        return package


def registered_version(model_uri: str, uri: str) -> RegisteredVersion:
    """Returns the version that models:/NAME@ALIAS or models:/NAME/VERSION means now.

    Raises InputError if there is none, or no registry answers.
    """
    name, alias, number = parse_model_uri(model_uri)
    try:
        client = open_store(uri)
        found = client.get_model_version_by_alias(name, alias) if alias else client.get_model_version(name, number)
    except MLFLOW_ERRORS as error:
        raise InputError(
            f"{model_uri}: the registry does not have it, or does not answer: {reason_of(error)}"
        ) from None
    return RegisteredVersion(
        name=name,
        number=str(found.version),
        source=str(found.source),
        digest=found.tags.get(PACKAGE_DIGEST_TAG),
        uri=uri,
    )
