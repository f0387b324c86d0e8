"""Asynchronous successive halving (https://arxiv.org/abs/1810.05934), decided from the histories of all trials.

A trial is recorded in every rung that it has passed, with the objective of the report at which it passed (less is better).
It continues if that is among the best 1/reduction_factor of those recorded in the rung so far, its own included.

Nothing is kept here between two reports: the journal is the record. So a resumed search has the same rungs as before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from components.cluster.driver.trial_control import controller_of
from components.cluster.slots.slot_result import METRIC, TIME
from components.experiment.spec import AshaSpec
from components.records.events import Progress, TrialHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class HalvingRule:
    """`rungs` are in target tokens, ascending. `per_branch`: every branch is a bracket of its own."""

    rungs: tuple[int, ...]
    reduction_factor: int
    per_branch: bool

    @classmethod
    def of(cls, spec: AshaSpec, budget: int, evaluations: int) -> HalvingRule:
        """`budget` is a trial's, in target tokens. Its evaluations are spread over it evenly."""
        return cls(
            rungs=spec.rungs(budget, evaluations),
            reduction_factor=spec.reduction_factor,
            per_branch=spec.brackets == "per_branch",
        )

    def stops(
        self, histories: Mapping[str, TrialHistory], trial_id: str, *, target_tokens: int, objective: float
    ) -> bool:
        """Whether this report is the trial's last. `histories` need not contain the report, and may.

        A trial is judged once in each rung, so a report that comes again after a restart decides nothing.
        """
        history = histories[trial_id]
        if not _follows_the_plan(history, history.last.step if history.last else 0):
            return False
        passed = [rung for rung in self.rungs if target_tokens >= rung and _objective_at(history, rung) is None]
        return any(
            not self._is_among_best(_as_recorded(objective), self._others(histories, history, rung)) for rung in passed
        )

    def _others(self, histories: Mapping[str, TrialHistory], judged: TrialHistory, rung: int) -> list[float]:
        """The objectives recorded in a rung of the trial's bracket."""
        rivals = (
            history
            for history in histories.values()
            if not self.per_branch or history.started.branch == judged.started.branch
        )
        objectives = (_objective_at(history, rung) for history in rivals)
        return [objective for objective in objectives if objective is not None]

    def _is_among_best(self, objective: float, others: Iterable[float]) -> bool:
        """The best one always is. In a rung that has fewer trials than reduction_factor, no other one is."""
        recorded = sorted([objective, *others])
        return objective <= recorded[max(1, len(recorded) // self.reduction_factor) - 1]


def _objective_at(history: TrialHistory, rung: int) -> float | None:
    """Returns what is recorded of a trial in a rung; None if it has not passed it."""
    return next((_as_recorded(each.objective) for each in _comparable(history) if each.target_tokens >= rung), None)


def _comparable(history: TrialHistory) -> Iterator[Progress]:
    """Yields a trial's reports as far as they can be compared with others' at equal target tokens."""
    began = 0
    for report in history.reports:
        if not _follows_the_plan(history, began):
            return
        yield report
        began = report.step


def _follows_the_plan(history: TrialHistory, step: int) -> bool:
    """Whether a trial trains from this step on with what every trial of the search was given.

    A clone that began with its parent's weights is ahead of all others. The learning rate of an extended trial falls later
    than that of others, so its loss is higher at equal target tokens. Rungs record and stop neither: such a trial ends
    with its budget, or when a person stops it. So does a repeat of a finalist: it is there to be compared at the end.
    """
    extended = any(extension.from_step <= step for extension in history.extensions)
    return history.started.warm_from is None and not history.started.repeat and not extended


def _as_recorded(objective: float) -> float:
    """Returns infinity for what is not a number: it is worse than any other."""
    return math.inf if math.isnan(objective) else objective


class SuccessiveHalving(FIFOScheduler):  # type: ignore[misc]
    """Halving as a Tune scheduler. It decides about reports alone."""

    def __init__(self, *, search_id: str, halving: HalvingRule) -> None:
        super().__init__()
        self._search_id, self._halving = search_id, halving

    def on_trial_result(self, tune_controller: object, trial: Trial, result: dict[str, float]) -> str:
        histories = controller_of(self._search_id).histories
        stops = self._halving.stops(
            histories, trial.trial_id, target_tokens=int(result[TIME]), objective=result[METRIC]
        )
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)
