"""Asynchronous successive halving (https://arxiv.org/abs/1810.05934), decided from the histories of all trials.

A trial is recorded in every rung that it has passed, with the objective of the report at which it passed (less is better):
that over the sample by which rungs are decided, where a search has one.
It continues if that is among the best 1/reduction_factor of those recorded in the rung so far, its own included.

Asynchronous Hyperband (the same paper) lets some trials skip the first rungs. They compete among themselves.

Nothing is kept here between two reports: the journal is the record. So a resumed search has the same rungs as before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from components.cluster.driver.trial_control import GAVE_PLACE
from components.cluster.scheduling.comparable import as_recorded, follows_the_plan, objective_at, rivals_of
from components.experiment.spec import AshaSpec, HyperbandSpec
from components.records.events import Progress, TrialHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class HalvingRule:
    """`rungs` are in target tokens, ascending. `per_branch`: every branch is a bracket of its own.

    `skips`: how many of the first rungs the trials 1, 2, ... skip; clones skip none.
    """

    rungs: tuple[int, ...]
    reduction_factor: int
    per_branch: bool
    skips: tuple[int, ...] = ()
    reason: str = GAVE_PLACE

    @classmethod
    def of(cls, spec: AshaSpec | HyperbandSpec, rungs: tuple[int, ...], branches: Sequence[str] = ()) -> HalvingRule:
        """`branches` are those of the trials 1, 2, ..., of which Hyperband gives each its shares of first rungs."""
        return cls(
            rungs=rungs,
            reduction_factor=spec.reduction_factor,
            per_branch=spec.brackets == "per_branch",
            skips=spec.skips(branches, len(rungs)) if isinstance(spec, HyperbandSpec) else (),
        )

    def stops(self, histories: Mapping[str, TrialHistory], trial_id: str, report: Progress) -> bool:
        """Whether this report is the trial's last. `histories` need not contain it, and may.

        A trial is judged once in each rung, so a report that comes again after a restart decides nothing.
        """
        history = histories[trial_id]
        if not follows_the_plan(history, history.last.step if history.last else 0):
            return False
        rungs = self.rungs[self._skipped(history) :]
        passed = [rung for rung in rungs if report.target_tokens >= rung and objective_at(history, rung) is None]
        return any(
            not self._is_among_best(as_recorded(report.rung_objective), self._others(histories, history, rung))
            for rung in passed
        )

    def _skipped(self, history: TrialHistory) -> int:
        number = history.started.number
        return self.skips[number - 1] if number <= len(self.skips) else 0

    def _others(self, histories: Mapping[str, TrialHistory], judged: TrialHistory, rung: int) -> list[float]:
        """The objectives recorded in a rung of the trial's bracket."""
        rivals = rivals_of(histories, judged, per_branch=self.per_branch)
        alike = (history for history in rivals if self._skipped(history) == self._skipped(judged))
        objectives = (objective_at(history, rung) for history in alike)
        return [objective for objective in objectives if objective is not None]

    def _is_among_best(self, objective: float, others: Iterable[float]) -> bool:
        """The best one always is. In a rung that has fewer trials than reduction_factor, no other one is."""
        recorded = sorted([objective, *others])
        return objective <= recorded[max(1, len(recorded) // self.reduction_factor) - 1]
