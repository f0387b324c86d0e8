"""Median stopping (Vizier, https://doi.org/10.1145/3097983.3098043), decided from the histories of all trials.

A trial ends if its best objective so far is worse than the median, over the others that have come as far, of the mean of
their objectives up to there. All report at the same target tokens, so the means are over equally many reports.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from components.cluster.scheduling.comparable import (
    as_recorded,
    comparable,
    follows_the_plan,
    objective_at,
    objectives_at,
    rivals_of,
)
from components.experiment.report_marks import evaluation_marks
from components.experiment.spec import MedianSpec
from components.records.events import Progress, TrialHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class MedianRule:
    """`marks`: the evaluations at which trials are judged, in target tokens, ascending."""

    marks: tuple[int, ...]
    min_trials: int
    per_branch: bool
    reason: str = "its best was worse than the median of the others at equal target tokens"

    @classmethod
    def of(cls, spec: MedianSpec, budget: int, evaluations: int, warmup_fraction: float) -> MedianRule:
        grace = spec.grace_target_tokens or warmup_fraction * budget
        marks = tuple(mark for mark in evaluation_marks(budget, evaluations) if grace <= mark < budget)
        return cls(marks=marks, min_trials=spec.min_trials, per_branch=spec.brackets == "per_branch")

    def stops(self, histories: Mapping[str, TrialHistory], trial_id: str, report: Progress) -> bool:
        """Whether this report is the trial's last. At each mark a trial is judged once."""
        history = histories[trial_id]
        tokens = report.target_tokens
        passed = [mark for mark in self.marks if tokens >= mark and objective_at(history, mark) is None]
        if not passed or not follows_the_plan(history, history.last.step if history.last else 0):
            return False
        best = min(as_recorded(each.objective) for each in (report, *comparable(history)))
        rivals = rivals_of(histories, history, per_branch=self.per_branch)
        means = [self._mean(rival, passed[-1]) for rival in rivals if rival.trial_id != trial_id]
        reached = [mean for mean in means if mean is not None]
        return len(reached) >= self.min_trials and best > statistics.median(reached)

    def _mean(self, history: TrialHistory, mark: int) -> float | None:
        """Of a trial's objectives up to a mark; None if it has not come so far."""
        marks = [each for each in self.marks if each <= mark]
        objectives = objectives_at(history, marks)
        return statistics.fmean(objectives) if len(objectives) == len(marks) else None
