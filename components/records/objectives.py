"""The numbers by which trials are compared: what the search goes by, and the others of `search.metrics`; less is better."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from components.experiment.spec import GROW_WITH_THE_BUDGET, OTHER_METRICS
from components.records.events import Progress, TrialHistory

Measured = Mapping[int, tuple[float, ...]]  # by the number of planned reports that had come


def objectives(report: Progress, metrics: Sequence[str], budget: int, *, at_rung: bool = False) -> tuple[float, ...]:
    """Returns the numbers of a report, each to be minimized: first what the search goes by.

    Args:
        metrics: `search.metrics`; none of them is one number.
        budget: of each trial, in target tokens. Seconds are projected to it, as if the trial had gone on at its speed.
        at_rung: the first is what decides the rung.
    """
    share = budget / report.target_tokens if report.target_tokens else math.inf
    others = []
    for name in metrics[1:]:
        value = float(getattr(report, name)) * (share if name in GROW_WITH_THE_BUDGET else 1.0)
        others.append(OTHER_METRICS[name].to_minimize(value))
    return report.rung_objective if at_rung else report.objective, *others


def measured_at_marks(
    reports: Iterable[Progress], metrics: Sequence[str], budget: int, marks: Sequence[int], rungs: Collection[int]
) -> dict[int, tuple[float, ...]]:
    """Returns the numbers of the first finite report at each planned one: trials compare at equal target tokens.

    Args:
        marks: where trials report, rungs and evaluations, in target tokens.
        rungs: those of them that are no regular evaluations: there each trial has what decides the rung.
    """
    measured: dict[int, tuple[float, ...]] = {}
    for report in reports:
        passed = sum(mark <= report.target_tokens for mark in marks)
        numbers = objectives(report, metrics, budget, at_rung=passed > 0 and marks[passed - 1] in rungs)
        if all(map(math.isfinite, numbers)):
            measured.setdefault(passed, numbers)
    return measured


def pareto_front(histories: Iterable[TrialHistory], metrics: Sequence[str], budget: int) -> frozenset[str]:
    """Returns the ids of the trials that no other beats: none is as good in every number, and better in one.

    A trial has the objective of its best checkpoint and the other numbers of its last report. Empty without `metrics`.
    """
    if not metrics:
        return frozenset()
    numbers = {}
    for history in histories:
        if history.best is not None and history.last is not None:
            found = (history.best.objective, *objectives(history.last, metrics, budget)[1:])
            if all(map(math.isfinite, found)):
                numbers[history.trial_id] = found
    front: list[tuple[float, ...]] = []
    for own in sorted(set(numbers.values())):  # nobody is beaten by what comes later, nor by what is beaten itself
        if not any(_dominates(other, own) for other in front):
            front.append(own)
    best = set(front)
    return frozenset(trial for trial, own in numbers.items() if own in best)


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
