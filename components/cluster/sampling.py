"""From the experiment's sampler to what Tune asks: a parameter space or a searcher, and the scheduler.

Every Tune config is {"trial": context.tune_config(...)}, whichever sampler made it.
"""

from __future__ import annotations

import collections
from typing import Any

from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm
from ray.tune.search.optuna import OptunaSearch

from components.cluster.asked import Drawn, Suggested
from components.cluster.context import tune_config
from components.cluster.directing import MOST_TIMES_THE_BUDGET
from components.cluster.elastic import Elastic, ElasticAsha
from components.cluster.room import Room
from components.experiment.domains import Choice, Domain, Grid, Integer, LogUniform, Uniform
from components.experiment.space import Branch, branch_order, sample_trials, some_trial, trial_spec
from components.experiment.spec import AshaSpec, ExperimentSpec, WorkersSpec

METRIC, TIME = "eval_loss", "target_tokens"


def parameter_space(experiment: ExperimentSpec) -> dict[str, Any]:
    """All trials of a random or grid search, already drawn; nothing for a searcher that draws them one by one."""
    if experiment.search.sampler == "tpe":
        return {}
    drawn = sample_trials(experiment)
    configs = [tune_config(n, trial.branch, trial.varied, trial.spec) for n, trial in enumerate(drawn, start=1)]
    return {"trial": tune.grid_search(configs)}


def search_algorithm(experiment: ExperimentSpec, search_id: str) -> SearchAlgorithm:
    """Optuna's TPE, which learns within each branch from what its trials have shown; else all that was drawn, in order."""
    most = experiment.search.max_concurrent_trials
    if experiment.search.sampler != "tpe":
        return Drawn(search_id, most)
    optuna = OptunaSearch(space=DefineByRun(experiment), metric=METRIC, mode="min", seed=experiment.search.seed)
    return Suggested(search_id, optuna, most)


def pending_trials(experiment: ExperimentSpec, room: Room) -> int:
    """How many trials shall wait for a place at any time. What waits is what the autoscaler sees, so it starts nodes for it.

    Random and grid: so many that, in the planned order, every shape waits as often as the cluster at its largest could hold
    it, or all of its trials do. Fewer would leave node types asleep while wide trials, which come first, stand in the
    queue before narrow ones; more would start no further node.

    TPE: a quarter of what the cluster at its largest holds at once, at least one. Every trial that waits was suggested
    before it had to be, without the results that come in meanwhile. So the cluster is full after four rounds of node
    starts, and a suggestion misses the results of at most a quarter more trials than run beside it anyway.
    """
    shapes = [experiment.resources.of(some_trial(experiment, branch).method) for branch in branch_order(experiment)]
    most = experiment.search.max_concurrent_trials or len(shapes)
    at_once = {shape: max(1, min(room.trials_at_once(shape), most)) for shape in set(shapes)}
    if experiment.search.sampler == "tpe":
        return max(1, max(at_once.values()) // 4)
    wanted = {shape: min(count, at_once[shape]) for shape, count in collections.Counter(shapes).items()}
    waiting: collections.Counter[WorkersSpec] = collections.Counter()
    for shape in shapes:
        waiting[shape] += 1
        if all(waiting[known] >= count for known, count in wanted.items()):
            break
    return waiting.total()


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
        return Elastic(experiment=experiment)
    first_rung = spec.first_rung_target_tokens or budget // experiment.trial.budget.evaluations
    return ElasticAsha(
        experiment=experiment,
        time_attr=TIME,
        metric=METRIC,
        mode="min",
        grace_period=max(1, first_rung),
        reduction_factor=spec.reduction_factor,
        max_t=MOST_TIMES_THE_BUDGET * budget,  # a trial ends itself; this must only never be reached
    )
