"""What a search will do that its file may not lead one to expect, found before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from components.cluster.capacity.cluster_capacity import ClusterCapacity
from components.cluster.scheduling.median_stopping import MedianRule
from components.cluster.scheduling.samplers import sampler_remarks
from components.cluster.scheduling.scheduler import trials_at_once
from components.experiment.report_marks import largest_warmup, rungs_of
from components.experiment.space import branch_order
from components.experiment.spec import (
    AshaSpec,
    ExperimentSpec,
    HyperbandSpec,
    MedianSpec,
    NoSchedulerSpec,
    Scheduler,
    written_in_tokens,
)

NO_SCHEDULER = "search.scheduler: {name: none}"


def check_rungs(experiment: ExperimentSpec, budget: int) -> None:
    """Raises ValueError for a first rung at which no trial can be stopped. `budget` is a trial's, in target tokens."""
    for name, tokens in written_in_tokens(experiment.search.scheduler).items():
        if tokens >= budget:
            raise ValueError(
                f"search.scheduler.{name}={tokens} stops no trial: each ends at {budget:,} target tokens; set it to less,"
                f" leave it out, or set {NO_SCHEDULER}"
            )


def remarks(experiment: ExperimentSpec, budget: int, capacity: ClusterCapacity, known: Iterable[str] = ()) -> list[str]:
    """Returns sentences for users.

    Args:
        budget: a trial's, in target tokens.
        known: the branch of each trial of an earlier search that the sampler knows.
    """
    found = list(_scheduler_remarks(experiment, budget))
    return [*found, *sampler_remarks(experiment, trials_at_once(experiment, capacity), Counter(known))]


def _scheduler_remarks(experiment: ExperimentSpec, budget: int) -> Iterator[str]:
    scheduler, warmup = experiment.search.scheduler, largest_warmup(experiment)
    if isinstance(scheduler, NoSchedulerSpec):
        return
    named = f"search.scheduler {scheduler.name}"
    if not _judges(experiment, budget):
        yield f"{named} stops no trial: none is judged before its end; {_way_out(scheduler)}, or set {NO_SCHEDULER}"
        return
    rungs = rungs_of(experiment, budget)
    if rungs and rungs[0] < warmup * budget:
        yield (
            f"{named}: the first rung at {rungs[0]:,} target tokens lies in the warm-up of some trials, which ends at"
            f" {warmup * budget:,.0f}; leave first_rung_target_tokens out to begin there"
        )
    yield from _lonely_trials(experiment, scheduler, len(rungs))


def _judges(experiment: ExperimentSpec, budget: int) -> bool:
    """Whether any trial is judged before its end."""
    scheduler = experiment.search.scheduler
    if not isinstance(scheduler, MedianSpec):
        return bool(rungs_of(experiment, budget))
    evaluations = experiment.trial.budget.evaluations
    return bool(MedianRule.of(scheduler, budget, evaluations, largest_warmup(experiment)).marks)


def _way_out(scheduler: Scheduler) -> str:
    if isinstance(scheduler, MedianSpec):
        return "raise trial.budget.evaluations, or lower grace_target_tokens"
    return "lower schedule.warmup_fraction, or set first_rung_target_tokens"


def _lonely_trials(
    experiment: ExperimentSpec, scheduler: AshaSpec | HyperbandSpec | MedianSpec, rungs: int
) -> Iterator[str]:
    """Trials that have nobody, or too few, to compete with."""
    branches = [branch.name for branch in branch_order(experiment)]
    skips = scheduler.skips(branches, rungs) if isinstance(scheduler, HyperbandSpec) else (0,) * len(branches)
    if scheduler.brackets == "shared":
        branches = ["the search"] * len(branches)
    for (bracket, skipped), trials in Counter(zip(branches, skips, strict=True)).items():
        whose = bracket + f" that begins at rung {skipped + 1}" * bool(skipped)
        if isinstance(scheduler, MedianSpec) and trials <= scheduler.min_trials:
            yield (
                f"search.scheduler median stops no trial of {whose}: it has {trials}, and one is judged once"
                f" {scheduler.min_trials} others have come as far; lower min_trials, or raise search.trials"
            )
        elif trials == 1 and skipped < max(rungs, 1):
            name = scheduler.name
            yield f"search.scheduler {name} stops no trial of {whose}: it has 1 trial, which has nobody to compete with"
