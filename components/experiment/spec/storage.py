"""The section `storage:`: where prepared data, journals and checkpoints are kept."""

from __future__ import annotations

import os
from typing import Self

from pydantic import Field, model_validator

from components.experiment.spec.section import Amount, Spec, check_uris

STORAGE = "TURNWISE_STORAGE"  # environment variable: set on a cluster's head, it is the storage of every job
PREPARED = "prepared"  # under the storage's path, beside the folders of experiments


class StorageSpec(Spec):
    path: str = Field(
        default_factory=lambda: os.environ.get(STORAGE, "runs"),
        description="Prepared data, journal and checkpoints: a folder (on a cluster one that all nodes see),"
        f" s3://BUCKET/PREFIX or gs://BUCKET/PREFIX. By default {STORAGE} of the environment, else `runs`.",
    )

    budget_gb: Amount | None = Field(
        None,
        description="What a search may keep there at any time, in 1e9 bytes. One that could keep more is refused before it"
        " starts. By default as much as it takes.",
    )

    @model_validator(mode="after")
    def _is_a_uri(self) -> Self:
        check_uris(path=self.path)
        return self
