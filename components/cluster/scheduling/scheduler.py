"""The scheduler of a search, and how many of its trials wait."""

from __future__ import annotations

import collections

from ray.tune.schedulers import TrialScheduler

from components.cluster.capacity.node_types import ClusterCapacity
from components.cluster.scheduling.elastic import Elastic, ElasticAsha
from components.cluster.scheduling.successive_halving import Halving
from components.experiment.space import branch_order, some_trial
from components.experiment.spec import AshaSpec, ExperimentSpec, WorkersSpec


def pending_trials(experiment: ExperimentSpec, room: ClusterCapacity) -> int:
    """How many trials shall wait for a place at any time. What waits is what the autoscaler sees, so it starts nodes for it.

    Random and grid: so many that, in the planned order, every shape waits as often as the cluster at its largest could hold
    it, or all of its trials do. Fewer would leave node types asleep while wide trials, which come first, stand in the
    queue before narrow ones; more would start no further node.

    TPE: a quarter of what the cluster at its largest holds at once, at least one. Every trial that waits was suggested
    before it had to be, without the results that come in meanwhile. So the cluster is full after four rounds of node
    starts, and a suggestion misses the results of at most a quarter more trials than run beside it anyway.
    """
    shapes = _shapes(experiment)
    at_once = _at_once(experiment, room)
    if experiment.search.sampler == "tpe":
        return max(1, max(at_once.values()) // 4)
    wanted = {shape: min(count, at_once[shape]) for shape, count in collections.Counter(shapes).items()}
    waiting: collections.Counter[WorkersSpec] = collections.Counter()
    for shape in shapes:
        waiting[shape] += 1
        if all(waiting[known] >= count for known, count in wanted.items()):
            break
    return waiting.total()


def trials_at_once(experiment: ExperimentSpec, room: ClusterCapacity) -> int:
    """About how many trials run or wait at any time: the cluster at its largest is taken to be full of its narrowest."""
    running = max(_at_once(experiment, room).values())
    most = experiment.search.max_concurrent_trials
    waiting = pending_trials(experiment, room)
    return running + waiting if most is None else min(most, running + waiting)


def _shapes(experiment: ExperimentSpec) -> list[WorkersSpec]:
    """The workers of every trial, in the planned order."""
    return [experiment.resources.of(some_trial(experiment, branch).method) for branch in branch_order(experiment)]


def _at_once(experiment: ExperimentSpec, room: ClusterCapacity) -> dict[WorkersSpec, int]:
    """How many trials of each shape can run at once, if no others do."""
    shapes = _shapes(experiment)
    most = experiment.search.max_concurrent_trials or len(shapes)
    return {shape: max(1, min(room.trials_at_once(shape), most)) for shape in set(shapes)}


def scheduler(experiment: ExperimentSpec, budget: int, search_id: str) -> TrialScheduler:
    """Decides on the global eval loss at equal target tokens. `budget` is in target tokens."""
    spec = experiment.search.scheduler
    if not isinstance(spec, AshaSpec):
        return Elastic(experiment=experiment)
    halving = Halving.of(spec, budget, experiment.trial.budget.evaluations)
    return ElasticAsha(experiment=experiment, search_id=search_id, halving=halving)
