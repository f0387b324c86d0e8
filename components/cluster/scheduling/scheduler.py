"""The scheduler of a search, and how many of its trials wait."""

from __future__ import annotations

import collections
import functools

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from components.cluster.capacity.availability import ClusterAvailability
from components.cluster.capacity.cluster_capacity import ClusterCapacity
from components.cluster.scheduling.budget_guard import BudgetGuard
from components.cluster.scheduling.clone_queue import CloneQueue
from components.cluster.scheduling.comparable import EndingRule
from components.cluster.scheduling.elastic import ElasticPolicy
from components.cluster.scheduling.journal_scheduler import JournalScheduler
from components.cluster.scheduling.median_stopping import MedianRule
from components.cluster.scheduling.migration import Migration
from components.cluster.scheduling.plateau import PlateauRule
from components.cluster.scheduling.slot_scheduler import SlotScheduler
from components.cluster.scheduling.successive_halving import HalvingRule
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.report_marks import largest_warmup, rungs_of
from components.experiment.space import branch_order, branches_of, num_trials, some_trial
from components.experiment.spec import AshaSpec, ExperimentSpec, HyperbandSpec, MedianSpec, WorkersSpec


def make_scheduler(experiment: ExperimentSpec, budget: int, search_id: str, ended: int = 0) -> SlotScheduler:
    """Returns a scheduler that decides on the search's metric at equal target tokens.

    Args:
        budget: of each trial, in target tokens.
        ended: how many of the sampler's trials have ended before the search was resumed.
    """
    scheduler = JournalScheduler(search_id=search_id, rules=ending_rules(experiment, budget))
    return on_slots(scheduler, experiment, BudgetGuard(search_id), ended)


def ending_rules(experiment: ExperimentSpec, budget: int) -> list[EndingRule]:
    """Returns what the experiment says about trials that end early."""
    search, evaluations = experiment.search, experiment.trial.budget.evaluations
    rules: list[EndingRule] = []
    match search.scheduler:
        case AshaSpec() | HyperbandSpec() as spec:
            branches = [branch.name for branch in branch_order(experiment)]
            rules.append(HalvingRule.of(spec, rungs_of(experiment, budget), branches))
        case MedianSpec() as spec:
            rules.append(MedianRule.of(spec, budget, evaluations, largest_warmup(experiment)))
    if search.plateau is not None:
        rules.append(PlateauRule.of(search.plateau, budget, evaluations))
    return rules


def on_slots(
    base: TrialScheduler, experiment: ExperimentSpec, guard: BudgetGuard | None = None, ended: int = 0
) -> SlotScheduler:
    """Returns a scheduler that gives the experiment's trials slots, and leaves all other decisions to `base`.

    `guard` keeps the budget of the search. `ended` as in make_scheduler.
    """
    return SlotScheduler(
        base,
        workers_of=functools.partial(workers_of, experiment),
        planned=num_trials(experiment) - ended,
        clones=CloneQueue(is_clone),
        migration=Migration(),
        policy=ElasticPolicy(ClusterAvailability()),
        guard=guard,
    )


def workers_of(experiment: ExperimentSpec, trial: Trial) -> WorkersSpec:
    """Returns what the experiment gives to the method of a trial."""
    return experiment.workers_of(TrialConfig.of(trial).spec.method)


def is_clone(trial: Trial) -> bool:
    """Whether a person asked for the trial, which then has a parent."""
    return TrialConfig.of(trial).parent is not None


def pending_trials(experiment: ExperimentSpec, capacity: ClusterCapacity) -> int:
    """Returns how many trials should wait for room at any time. The autoscaler sees what waits, and starts nodes for it.

    Random and grid: so many that, in the planned order, every shape waits as often as the cluster at its largest could hold
    it, or all of its trials do. With fewer, node types would not start while wide trials, which come first, wait before
    narrow ones; with more, no further node would start.

    Samplers that learn: a quarter of what the cluster at its largest holds at once, at least one. Every trial that waits was
    suggested earlier than necessary, without the results that come in meanwhile. So the cluster is full after four rounds of
    node starts, and a suggestion misses the results of at most a quarter more trials than run beside it in any case.
    """
    shapes = _shapes(experiment)
    at_once = _at_once(experiment, capacity)
    if experiment.search.learns:
        return max(1, max(at_once.values()) // 4)
    wanted = {shape: min(count, at_once[shape]) for shape, count in collections.Counter(shapes).items()}
    waiting: collections.Counter[WorkersSpec] = collections.Counter()
    for shape in shapes:
        waiting[shape] += 1
        if all(waiting[known] >= count for known, count in wanted.items()):
            break
    return waiting.total()


def places(experiment: ExperimentSpec, capacity: ClusterCapacity) -> dict[str, int]:
    """Returns how many trials of each branch can run at once, if no others do."""
    at_once = _at_once(experiment, capacity)
    branches = branches_of(experiment).values()
    return {branch.name: at_once[experiment.workers_of(some_trial(experiment, branch).method)] for branch in branches}


def trials_at_once(experiment: ExperimentSpec, capacity: ClusterCapacity) -> int:
    """Returns about how many trials run or wait at any time, if the cluster at its largest is full of its narrowest."""
    running = max(_at_once(experiment, capacity).values())
    limit = experiment.search.max_concurrent_trials
    waiting = pending_trials(experiment, capacity)
    return running + waiting if limit is None else min(limit, running + waiting)


def _shapes(experiment: ExperimentSpec) -> list[WorkersSpec]:
    """The workers of every trial, in the planned order."""
    return [experiment.workers_of(some_trial(experiment, branch).method) for branch in branch_order(experiment)]


def _at_once(experiment: ExperimentSpec, capacity: ClusterCapacity) -> dict[WorkersSpec, int]:
    """How many trials of each shape can run at once, if no others do."""
    shapes = _shapes(experiment)
    limit = experiment.search.max_concurrent_trials or len(shapes)
    return {shape: max(1, min(capacity.trials_at_once(shape), limit)) for shape in set(shapes)}
