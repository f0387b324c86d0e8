"""What Tune knows of a trial: the config that a sampler gives it, and that its slot reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field
from ray.tune.experiment import Trial

from components.experiment.spec import TrialSpec
from components.records.events import Clone, TrialStarted

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
    drawn_after: int | None = Field(None, description="How many ends of trials the sampler knew when it drew this one.")

    def to_tune(self) -> dict[str, Any]:
        """Returns the trial's Tune config, in plain JSON values."""
        return {KEY: self.model_dump(mode="json")}

    @classmethod
    def of_started(cls, started: TrialStarted) -> Self:
        """Returns the config of a trial that the journal has."""
        return cls(**{name: getattr(started, name) for name in cls.model_fields})

    @classmethod
    def of_clone(cls, parent: str, clone: Clone) -> Self:
        """Returns the config of a clone that has not begun."""
        fields = {name: getattr(clone, name) for name in ("number", "branch", "varied", "spec", "warm_from", "repeat")}
        return cls(parent=parent, **fields)

    @classmethod
    def of(cls, trial: Trial | Mapping[str, Any]) -> Self:
        """Reads the config of a Tune trial, or a Tune config itself."""
        config = trial if isinstance(trial, Mapping) else trial.config
        return cls.model_validate(config[KEY])
