"""`search.budget`: what a whole search may spend. `trial.budget` is what each trial trains on."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from components.experiment.spec.section import Amount, Name, Spec


class SearchBudgetSpec(Spec):
    """Any of three limits. The first one that is reached ends the trials, and the verdict comes from what is there."""

    hours: Amount | None = Field(
        None, description="Of a running driver, over all resumes; the time between them does not count."
    )
    dollars: Amount | None = Field(None, description="For the workers that trials occupy.")
    worker_seconds: Amount | None = Field(
        None, description="Of workers that trials occupy: GPU-seconds where a worker is a GPU."
    )
    dollars_per_worker_hour: Amount | dict[Name, Amount] | None = Field(
        None, description="Your price, also by branch. By default that of the table of machines, for a worker's GPU."
    )

    @model_validator(mode="after")
    def _has_a_limit(self) -> Self:
        if self.hours is None and self.dollars is None and self.worker_seconds is None:
            raise ValueError("give at least one limit: hours, dollars or worker_seconds")
        return self
