"""The section `search:`: the space of trials, the sampler, the scheduler and the budget."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from components.experiment.spec.schedulers import AshaSpec, PlateauSpec, Scheduler
from components.experiment.spec.search_budget import SearchBudgetSpec
from components.experiment.spec.section import Name, Spec, fill_in_tag


class SearchSpec(Spec):
    """The search space and how trials are drawn from it. components/experiment/space.py reads `space`."""

    space: dict[Name, dict[str, Any]] = Field(
        min_length=1,
        description="Branches. A branch looks like `trial:`, with a domain instead of each value that varies.",
    )
    sampler: Literal["random", "grid", "tpe"] = Field("random", description="`tpe` is Optuna's.")
    scheduler: Scheduler = AshaSpec()
    plateau: PlateauSpec | None = Field(None, description="By default no trial ends for this.")
    budget: SearchBudgetSpec | None = Field(None, description="By default as much as the trials take.")
    trials: PositiveInt | None = Field(
        None, description="Trials in all, shared evenly by the branches. By default all points of a grid, else 8."
    )
    max_concurrent_trials: PositiveInt | None = Field(None, description="By default as many as the cluster holds.")
    max_failures: NonNegativeInt = Field(2, description="Times a trial is restarted after its slot died.")
    seed: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _default_to_asha(cls, values: Any) -> Any:
        return fill_in_tag(values, "scheduler", "name", "asha")
