"""What of a trial's reports can be compared with other trials' at equal target tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from components.records.events import Progress, TrialHistory


class EndingRule(Protocol):
    """Decides from the histories of all trials whether a report is a trial's last. It keeps nothing between two reports."""

    @property
    def reason(self) -> str:
        """Why the trials that it ends have ended."""
        ...

    def stops(self, histories: Mapping[str, TrialHistory], trial_id: str, report: Progress) -> bool:
        """Whether this report is the trial's last. `histories` need not contain it, and may."""
        ...


def objective_at(history: TrialHistory, rung: int) -> float | None:
    """Returns what is recorded of a trial in a rung; None if it has not passed it."""
    return next((as_recorded(each.rung_objective) for each in comparable(history) if each.target_tokens >= rung), None)


def objectives_at(history: TrialHistory, rungs: Iterable[int]) -> list[float]:
    """Returns what is recorded of a trial in each of these rungs, as far as it has passed them. `rungs` ascend."""
    found: list[float] = []
    waiting = list(rungs)
    for report in comparable(history):
        passed = sum(rung <= report.target_tokens for rung in waiting[len(found) :])
        found += [as_recorded(report.objective)] * passed
        if len(found) == len(waiting):
            break
    return found


def comparable(history: TrialHistory) -> Iterator[Progress]:
    """Yields a trial's reports as far as they can be compared with others' at equal target tokens."""
    began = 0
    for report in history.reports:
        if not follows_the_plan(history, began):
            return
        yield report
        began = report.step


def follows_the_plan(history: TrialHistory, step: int) -> bool:
    """Whether a trial trains from this step on with what every trial of the search was given.

    A clone that began with its parent's weights is ahead of all others. The learning rate of an extended trial falls later
    than that of others, so its loss is higher at equal target tokens. Rungs record and stop neither: such a trial ends
    with its budget, or when a person stops it. So does a repeat of a finalist: it is there to be compared at the end.
    """
    extended = any(extension.from_step <= step for extension in history.extensions)
    return history.started.warm_from is None and not history.started.repeat and not extended


def as_recorded(objective: float) -> float:
    """Returns infinity for what is not a number: it is worse than any other."""
    return math.inf if math.isnan(objective) else objective


def rivals_of(
    histories: Mapping[str, TrialHistory], judged: TrialHistory, *, per_branch: bool
) -> Iterator[TrialHistory]:
    """Yields the trials that this one competes with, itself among them."""
    for history in histories.values():
        if not per_branch or history.started.branch == judged.started.branch:
            yield history
