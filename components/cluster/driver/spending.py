"""What a running search has spent up to this moment, and whether its budget lets more trials start."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from components.records.budget_rule import BudgetRule, Spent
from components.records.events import TrialHistory
from components.records.search_cost import TrialCost, dollars_of
from components.records.slot_clock import SlotClock


class Spending:
    """The journal's sums, and what the slots have held since the last reports.

    Args:
        running_seconds: how long drivers of this search have been running.
    """

    def __init__(
        self,
        rule: BudgetRule,
        histories: Mapping[str, TrialHistory],
        clock: SlotClock,
        running_seconds: Callable[[], float],
    ) -> None:
        self.rule, self._histories, self._clock, self._running_seconds = rule, histories, clock, running_seconds
        self.refused: dict[str, str] = {}  # by branch, the limit that lets none of its trials start any more

    def spent(self) -> Spent:
        branches = [
            (history.started.branch, TrialCost.of(history).total + self._clock.held(trial_id))
            for trial_id, history in self._histories.items()
        ]
        return Spent(
            seconds=self._running_seconds(),
            worker_seconds=sum(seconds for _, seconds in branches),
            dollars=dollars_of(branches, self.rule.prices) or 0.0,
        )

    def exhausted(self) -> str | None:
        """The limit that is reached, if one is."""
        return self.rule.exhausted(self.spent())

    def refuses(self, branch: str) -> str | None:
        """The limit that leaves too little for a new trial of a branch. Once it does, it always will."""
        if branch not in self.refused:
            at_work = sum(self._clock.at_work.values())
            limit = self.rule.refuses(self.spent(), self._histories.values(), branch, at_work=at_work)
            if limit is not None:
                self.refused[branch] = limit
        return self.refused.get(branch)
