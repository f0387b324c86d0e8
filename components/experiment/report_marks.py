"""Where trials report, in target tokens: at the rungs of the scheduler, and at evaluations evenly over the budget."""

from __future__ import annotations

from collections.abc import Iterable

from components.experiment.space import branches_of
from components.experiment.spec import AshaSpec, ExperimentSpec, HyperbandSpec


def rungs_of(experiment: ExperimentSpec, budget: int) -> tuple[int, ...]:
    """Returns the rungs of the search's scheduler, ascending. `budget` is a trial's, in target tokens."""
    scheduler = experiment.search.scheduler
    if not isinstance(scheduler, AshaSpec | HyperbandSpec):
        return ()
    return scheduler.rungs(budget, largest_warmup(experiment))


def largest_warmup(experiment: ExperimentSpec) -> float:
    """Returns the largest share of its budget that any trial of the space may spend warming up."""
    path, shared = "schedule.warmup_fraction", experiment.trial.schedule.warmup_fraction
    return max(
        max(map(float, branch.domains[path].extremes()))
        if path in branch.domains
        else branch.constants.get(path, shared)
        for branch in branches_of(experiment).values()
    )


def evaluation_marks(budget: int, evaluations: int) -> tuple[int, ...]:
    """Returns the regular evaluations of a trial, the last one at its end: each comes with the step that reaches it."""
    return tuple(-(-budget * number // evaluations) for number in range(1, evaluations + 1))


def report_marks(budget: int, evaluations: int, rungs: tuple[int, ...]) -> tuple[int, ...]:
    """Returns all marks, ascending: a rung that is also an evaluation is one report."""
    return tuple(sorted({*evaluation_marks(budget, evaluations), *rungs}))


def rungs_alone(budget: int, evaluations: int, rungs: Iterable[int]) -> frozenset[int]:
    """Returns the rungs that are no regular evaluations."""
    return frozenset(rungs) - frozenset(evaluation_marks(budget, evaluations))


def passes_evaluation(before: int, after: int, planned: int, evaluations: int) -> bool:
    """Whether a regular evaluation lies beyond `before` and not beyond `after`, in target tokens; `planned` as below."""
    return before * evaluations // planned < after * evaluations // planned


def next_mark(target_tokens: int, planned: int, evaluations: int, rungs: tuple[int, ...]) -> int:
    """Returns where a trial that has trained on so many targets reports next.

    `planned` is the budget without extensions: beyond it evaluations go on at the same distance.
    """
    number = target_tokens * evaluations // planned + 1
    regular = -(-planned * number // evaluations)
    return min([regular, *(rung for rung in rungs if rung > target_tokens)])
