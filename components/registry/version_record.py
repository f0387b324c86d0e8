"""What the registry says of a version: its number, aliases and tags, as a record for programs and for pages."""

from __future__ import annotations

import math
from collections.abc import Mapping

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from pydantic import BaseModel, ConfigDict, Field

from components.registry.promotion import GATE_TAG, PASSED_TAG
from components.registry.proven import PROVEN_TAG
from components.registry.version_tags import SCHEME
from components.registry.versions import BYTES_TAG, local_folder
from components.storage.size import tree_bytes


class VersionRecord(BaseModel):
    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    aliases: tuple[str, ...]
    proven: str | None = Field(description="What was seen of it, and when; None if nothing says that it was proven.")
    gate_passed: bool | None = Field(description="None if no gate has decided.")
    gate: str | None = Field(description="The decision in a sentence.")
    method: str | None
    base_model: str | None
    eval_loss: float | None
    bytes: int | None = Field(description="Of all its files; None if nothing says it.")
    created: float = Field(description="Seconds since 1970.")
    source: str = Field(description="Where its files are.")
    run_id: str | None
    description: str | None
    tags: dict[str, str]

    @property
    def uri(self) -> str:
        return f"{SCHEME}{self.name}/{self.version}"


def record_of(version: ModelVersion, aliases: Mapping[str, str]) -> VersionRecord:
    """`aliases`: of the registered model, with the versions that hold them: lists of versions do not have them."""
    tags, number = dict(version.tags), str(version.version)
    passed = tags.get(PASSED_TAG)
    return VersionRecord(
        name=version.name,
        version=number,
        aliases=tuple(sorted(alias for alias, holder in aliases.items() if str(holder) == number)),
        proven=tags.get(PROVEN_TAG),
        gate_passed=None if passed is None else passed == "true",
        gate=tags.get(GATE_TAG),
        method=tags.get("turnwise.method"),
        base_model=tags.get("turnwise.base_model"),
        eval_loss=_number(tags.get("turnwise.eval_loss")),
        bytes=_bytes(tags.get(BYTES_TAG), str(version.source)),
        created=version.creation_timestamp / 1000,
        source=str(version.source),
        run_id=version.run_id or None,
        description=version.description or None,
        tags=dict(sorted(tags.items())),
    )


def records_of(client: MlflowClient, name: str) -> list[VersionRecord]:
    """All versions of a registered model, the newest first. Raises what MLflow raises if there is no such model."""
    aliases = client.get_registered_model(name).aliases
    found, token = [], None
    while True:
        page = client.search_model_versions(f"name = '{name}'", page_token=token)
        found += [record_of(version, aliases) for version in page]
        token = page.token
        if not token:
            return sorted(found, key=lambda record: int(record.version), reverse=True)


def _number(text: str | None) -> float | None:
    """A tag that a person wrote by hand may be anything."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _bytes(text: str | None, source: str) -> int | None:
    """By the tag; without it, of a version of before, by its folder if that is on this machine."""
    if text is not None and text.isdecimal():
        return int(text)
    folder = local_folder(source)
    return None if folder is None else tree_bytes(folder)
