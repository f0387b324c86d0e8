"""What a search will do that its file may not lead one to expect, found before it starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from components.cluster.capacity.cluster_capacity import ClusterCapacity
from components.cluster.scheduling.samplers import sampler_remarks
from components.cluster.scheduling.scheduler import trials_at_once
from components.experiment.space import branch_order
from components.experiment.spec import AshaSpec, ExperimentSpec

NO_SCHEDULER = "search.scheduler: {name: none}"


def check_rungs(experiment: ExperimentSpec, budget: int) -> None:
    """Raises ValueError for a first rung at which no trial can be stopped. `budget` is a trial's, in target tokens."""
    scheduler, last = experiment.search.scheduler, _last_decision(experiment, budget)
    if isinstance(scheduler, AshaSpec) and (scheduler.first_rung_target_tokens or 0) > last:
        when = (
            f"the last evaluation before a trial's end comes at {last:,} of its {budget:,} target tokens; set it to {last}"
            " or less"
            if last
            else f"a trial is evaluated once, at the end of its {budget:,} target tokens; leave it out"
        )
        raise ValueError(
            f"search.scheduler.first_rung_target_tokens={scheduler.first_rung_target_tokens} stops no trial: {when}, raise"
            f" trial.budget.evaluations, or set {NO_SCHEDULER}"
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
    scheduler, evaluations = experiment.search.scheduler, experiment.trial.budget.evaluations
    if not isinstance(scheduler, AshaSpec):
        return
    if evaluations == 1:
        yield (
            f"search.scheduler asha stops no trial: each is evaluated once, at its end; raise trial.budget.evaluations, or"
            f" set {NO_SCHEDULER}"
        )
        return
    yield from _idle_rungs(scheduler, budget, evaluations)
    order = Counter(branch.name for branch in branch_order(experiment))
    brackets = order if scheduler.brackets == "per_branch" else Counter({"the search": order.total()})
    for bracket, trials in brackets.items():
        if trials == 1:
            yield f"search.scheduler asha stops no trial of {bracket}: it has 1 trial, which has nobody to compete with"


def _idle_rungs(scheduler: AshaSpec, budget: int, evaluations: int) -> Iterator[str]:
    """Only rungs after a first one that was set by hand can come between evaluations; by default each is at one."""
    rungs_at: dict[int, list[int]] = {}
    for rung in scheduler.rungs(budget, evaluations):
        rungs_at.setdefault(-(-rung * evaluations // budget), []).append(rung)
    for evaluation, rungs in rungs_at.items():
        named, tokens = ", ".join(f"{rung:,}" for rung in rungs), budget * evaluation // evaluations
        if evaluation == evaluations:
            yield f"search.scheduler: no trial is stopped at the rung at {named} target tokens: the next report is its last"
        elif len(rungs) > 1:
            yield (
                f"search.scheduler: the rungs at {named} target tokens are one: the next evaluation after each is at"
                f" {tokens:,}, where one in {scheduler.reduction_factor} trials passes; raise trial.budget.evaluations, or"
                f" set first_rung_target_tokens to {tokens}"
            )


def _last_decision(experiment: ExperimentSpec, budget: int) -> int:
    """Returns where a trial reports for the last time before its end, in target tokens; 0: it does not."""
    evaluations = experiment.trial.budget.evaluations
    return budget * (evaluations - 1) // evaluations
