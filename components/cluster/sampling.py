"""From the experiment's sampler to what Tune asks: a parameter space or a searcher, and the scheduler.

Every Tune config is {"trial": {number, branch, varied, spec}}, whichever sampler made it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from components.cluster.moving import Moving, MovingAsha
from components.experiment.domains import Choice, Domain, Grid, Integer, LogUniform, Uniform
from components.experiment.space import Branch, branch_order, sample_trials, trial_spec
from components.experiment.spec import AshaSpec, ExperimentSpec, TrialSpec

METRIC, TIME = "eval_loss", "target_tokens"


def tune_config(number: int, branch: str, varied: Mapping[str, Any], spec: TrialSpec) -> dict[str, Any]:
    return {"number": number, "branch": branch, "varied": dict(varied), "spec": spec.model_dump(mode="json")}


def parameter_space(experiment: ExperimentSpec) -> dict[str, Any]:
    """All trials of a random or grid search, already drawn; nothing for a searcher that draws them one by one."""
    if experiment.search.sampler == "tpe":
        return {}
    drawn = sample_trials(experiment)
    configs = [tune_config(n, trial.branch, trial.varied, trial.spec) for n, trial in enumerate(drawn, start=1)]
    return {"trial": tune.grid_search(configs)}


def searcher(experiment: ExperimentSpec) -> Searcher | None:
    """Optuna's TPE, which learns within each branch from what its trials have shown."""
    if experiment.search.sampler != "tpe":
        return None
    # With max_concurrent_trials Tune would stage many trials before the first result is in, all of them drawn blindly.
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", "1")
    return OptunaSearch(space=DefineByRun(experiment), metric=METRIC, mode="min", seed=experiment.search.seed)


class DefineByRun:
    """Optuna's view of the space. Branches come in the order of branch_order."""

    def __init__(self, experiment: ExperimentSpec) -> None:
        self.experiment = experiment
        self.order = branch_order(experiment)

    def __call__(self, trial: Any) -> dict[str, Any]:
        branch = self.order[trial.number % len(self.order)]
        varied = {path: _suggest(trial, branch, path, domain) for path, domain in branch.domains.items()}
        spec = trial_spec(self.experiment, branch, varied)
        return {"trial": tune_config(trial.number + 1, branch.name, varied, spec)}


def _suggest(trial: Any, branch: Branch, path: str, domain: Domain) -> Any:
    """One name per branch: Optuna refuses one name with two distributions."""
    name = f"{branch.name}:{path}"
    match domain:
        case Choice(choice=values) | Grid(grid=values):
            # By position: Optuna wants plain values, and a choice may be a list of module names.
            return values[trial.suggest_categorical(name, range(len(values)))]
        case Uniform(uniform=(low, high)):
            return trial.suggest_float(name, low, high)
        case LogUniform(log_uniform=(low, high)):
            return trial.suggest_float(name, low, high, log=True)
        case Integer(integer=(low, high)):
            return trial.suggest_int(name, low, high)


def scheduler(experiment: ExperimentSpec, budget: int) -> TrialScheduler:
    """Decides on the global eval loss at equal target tokens. `budget` is in target tokens."""
    spec = experiment.search.scheduler
    if not isinstance(spec, AshaSpec):
        return Moving()
    first_rung = spec.first_rung_target_tokens or budget // experiment.trial.budget.evaluations
    return MovingAsha(
        time_attr=TIME,
        metric=METRIC,
        mode="min",
        grace_period=max(1, first_rung),
        reduction_factor=spec.reduction_factor,
        max_t=10 * budget,  # a trial ends itself; this must only never be reached
    )
