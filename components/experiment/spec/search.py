"""The section `search:`: the space of trials, the sampler, the scheduler and the budget."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from components.experiment.spec.metric import Metric, MetricSpec
from components.experiment.spec.objectives import check_metrics
from components.experiment.spec.schedulers import AshaSpec, PlateauSpec, Scheduler
from components.experiment.spec.search_budget import SearchBudgetSpec
from components.experiment.spec.section import Name, Repeats, Seed, Spec, Trials, fill_in_tag

LEARNING = "tpe, gp or cmaes"
MAX_TRIALS_PER_SLOT = 32


class ConfirmSpec(Spec):
    """Repeats the best configurations of each branch with new seeds, once all other trials have ended."""

    top: Repeats = Field(1, description="Configurations of each branch that are repeated.")
    seeds: Annotated[Repeats, Field(ge=2)] = Field(
        3, description="New seeds for each: with fewer than two nothing is known of how much a seed decides."
    )


class SearchSpec(Spec):
    """The search space and how trials are drawn from it. components/experiment/space.py reads `space`."""

    space: dict[Name, dict[str, Any]] = Field(
        min_length=1,
        description="Branches. A branch looks like `trial:`, with a domain instead of each value that varies.",
    )
    sampler: Literal["random", "grid", "tpe", "gp", "cmaes"] = Field(
        "random",
        description="`tpe`, `gp` (a Gaussian process) and `cmaes` (CMA-ES) are Optuna's, one study per branch.",
    )
    warm_up: Trials | None = Field(
        None,
        description="Results of a branch before `tpe`, `gp` or `cmaes` suggests from them; until then it draws at random. By"
        " default half of its trials, 10 at most.",
    )
    metrics: tuple[str, ...] = Field(
        (),
        description="Numbers to trade off, e.g. [eval_loss, worker_seconds]: the Pareto front is shown. The first one is what"
        " the search goes by, and what the champion is chosen by.",
    )
    start_from: tuple[str | dict[str, Any], ...] = Field(
        (),
        description="Points that are tried first, e.g. {branch: lora, method.rank: 16}, and earlier searches to learn from:"
        " `latest`, `search:ID`, `search:EXPERIMENT/ID`.",
    )
    scheduler: Scheduler = AshaSpec()
    metric: Metric = Field(
        MetricSpec(),
        description="What trials are ranked, stopped and drawn by: eval_loss, a score of what the model says, or a function"
        " of yours as {name: module:function, direction: maximize}.",
    )
    plateau: PlateauSpec | None = Field(None, description="By default no trial ends for this.")
    budget: SearchBudgetSpec | None = Field(None, description="By default as much as the trials take.")
    trials: Trials | None = Field(
        None, description="Trials in all, shared evenly by the branches. By default all points of a grid, else 8."
    )
    max_concurrent_trials: Trials | None = Field(None, description="By default as many as the cluster holds.")
    trials_per_slot: Annotated[int, Field(ge=1, le=MAX_TRIALS_PER_SLOT)] = Field(
        1,
        description="LoRA trials that one worker trains together, in one pass over one base model in memory; each as it would"
        " be alone.",
    )
    confirm: ConfirmSpec | None = Field(
        None, description="Repeats of the best configurations with new seeds; by default none."
    )
    max_failures: NonNegativeInt = Field(2, le=1_000_000, description="Times a trial is restarted after its slot died.")
    seed: Seed = 0

    @model_validator(mode="before")
    @classmethod
    def _default_to_asha(cls, values: Any) -> Any:
        return fill_in_tag(values, "scheduler", "name", "asha")

    @model_validator(mode="before")
    @classmethod
    def _list_what_stands_alone(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("start_from"), str | dict):
            return {**values, "start_from": [values["start_from"]]}
        return values

    @model_validator(mode="after")
    def _check_sampling(self) -> Self:
        check_metrics(self.metrics, MetricSpec())
        names = [name for name in self.start_from if isinstance(name, str)]
        if self.warm_up is not None and not self.learns:
            raise ValueError(f"warm_up={self.warm_up}: sampler {self.sampler} learns from no results; take {LEARNING}")
        if self.metrics and self.sampler == "cmaes":
            raise ValueError("metrics: sampler cmaes follows one number; take tpe or gp, or leave metrics out")
        if names and not self.learns:
            raise ValueError(
                f"start_from: sampler {self.sampler} learns nothing from {', '.join(names)}; take {LEARNING}, or give points"
            )
        if self.start_from and self.sampler == "grid":
            raise ValueError(
                "start_from: sampler grid tries every point of its lists in their order; leave one of them out"
            )
        return self

    @property
    def learns(self) -> bool:
        """Whether the sampler suggests trials from the results of others."""
        return self.sampler in ("tpe", "gp", "cmaes")
