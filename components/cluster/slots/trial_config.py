"""What Tune knows of a trial: the config that a sampler gives it, and that its slot reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from ray.tune.experiment import Trial

from components.experiment.spec import TrialSpec

KEY = "trial"  # in Tune's config, which must be a mapping


class TrialConfig(BaseModel):
    """One trial of a search: drawn by a sampler, or a clone that a person asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int = Field(description="1, 2, ... in the order of sampling.")
    branch: str
    varied: dict[str, Any] = Field(description="What the search drew: dotted path -> value.")
    spec: TrialSpec
    parent: str | None = Field(None, description="Of a clone: the id of the trial that it was made from.")
    repeat: bool = Field(False, description="Its parent with another seed, asked for by search.confirm.")
    warm_from: str | None = Field(None, description="Of a warm clone: the checkpoint whose weights it begins with.")

    def to_tune(self) -> dict[str, Any]:
        """Returns the trial's Tune config, in plain JSON values."""
        return {KEY: self.model_dump(mode="json")}

    @classmethod
    def of(cls, trial: Trial | Mapping[str, Any]) -> Self:
        """Reads the config of a Tune trial, or a Tune config itself."""
        config = trial if isinstance(trial, Mapping) else trial.config
        return cls.model_validate(config[KEY])
