"""What a study learns of a trial that has ended.

TPE ranks trials, best first:
- it spent the budget of the search: COMPLETE, with the loss at that many target tokens (an extended trial trains on);
- it was stopped before, by the scheduler, by a person or with its slot: PRUNED, with the loss at the last evaluation that
  it reached. Optuna ranks those after all complete ones, the further the better, and by loss where they are equal;
- it diverged, or its configuration cannot be trained: PRUNED, violating a constraint by the share of the budget that it did
  not reach. Optuna ranks those last;
- it was lost before its first evaluation: FAIL, for nothing is known of its configuration.

gp, cmaes and all that go by several metrics see complete trials only, so a stopped trial is completed: its numbers at its
last evaluation, changed by as much as those of complete trials changed from there to their end (the median; nothing while
there is none). One that cannot be trained has the worst numbers that the branch has seen; it is FAIL while there are none.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState

from components.records.objectives import Measured

CONSTRAINT = "share of the budget not reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialEnd:
    """`reports`: target tokens -> loss. `violation` of the constraint; 0: none."""

    state: TrialState
    values: tuple[float, ...] | None = None
    reports: dict[int, float] = field(default_factory=dict)
    violation: float = 0.0

    def tell(self, study: optuna.Study, trial: optuna.trial.Trial) -> None:
        """Ends a trial that the study has suggested."""
        for step, loss in self.reports.items():
            trial.report(loss, step=step)
        if self.violation:
            trial.set_constraint(CONSTRAINT, self.violation)
        study.tell(trial, self.values, state=self.state)

    def add(self, study: optuna.Study, params: dict[str, object], distributions: dict[str, BaseDistribution]) -> None:
        """Adds a trial of an earlier search."""
        study.add_trial(
            optuna.trial.create_trial(
                state=self.state,
                values=self.values or (list(self.reports.values()) or None),
                params=params,
                distributions=distributions,
                intermediate_values=self.reports,
                constraints={CONSTRAINT: self.violation} if self.violation else None,
            )
        )


def end_in_order(measured: Measured, *, marks: Sequence[int], impossible: bool) -> TrialEnd:
    """What TPE learns. `marks` are where each trial reports, in target tokens, the last one at its end."""
    reached = max(measured, default=0)
    if impossible:
        return TrialEnd(state=TrialState.PRUNED, violation=1 - reached / (len(marks) + 1))
    if reached == len(marks):
        return TrialEnd(state=TrialState.COMPLETE, values=measured[reached])
    if not measured:
        return TrialEnd(state=TrialState.FAIL)
    return TrialEnd(state=TrialState.PRUNED, reports={marks[reached - 1] if reached else 0: measured[reached][0]})


def end_as_complete(
    measured: Measured, *, marks: Sequence[int], impossible: bool, others: Sequence[Measured]
) -> TrialEnd:
    """What a sampler learns that sees complete trials only. `others` are the trials of the branch that ended before."""
    if impossible:
        seen = [other[max(other)] for other in others if other]
        if not seen:
            return TrialEnd(state=TrialState.FAIL)
        return TrialEnd(state=TrialState.COMPLETE, values=tuple(map(max, zip(*seen, strict=True))))
    if not measured:
        return TrialEnd(state=TrialState.FAIL)
    reached, end = max(measured), len(marks)
    whole = [other for other in others if end in other and reached in other]
    if reached == end or not whole:
        return TrialEnd(state=TrialState.COMPLETE, values=measured[reached])
    values = tuple(
        number + statistics.median(other[end][position] - other[reached][position] for other in whole)
        for position, number in enumerate(measured[reached])
    )
    return TrialEnd(state=TrialState.COMPLETE, values=values)
