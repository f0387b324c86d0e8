"""What the budget of a search still allows: pure arithmetic over what has been spent, and over what trials have taken.

Trials that run when a limit is reached end after their step, with a report. So at most one report a trial comes after it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from components.experiment.spec import SearchBudgetSpec
from components.records.events import Progress, TrialHistory
from components.records.search_cost import HOUR


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """By the driver's clock and by its workers, up to this moment. `dollars` are 0 where nobody asks for them."""

    seconds: float
    worker_seconds: float
    dollars: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRule:
    """`first_report` is where a new trial is first judged, in target tokens. `prices`: dollars a worker-hour, by branch."""

    limits: SearchBudgetSpec
    first_report: int
    prices: Mapping[str, float]

    def exhausted(self, spent: Spent) -> str | None:
        """Returns the limit that is reached, e.g. `search.budget.hours=8`; None if there is none."""
        return next((self._name(unit) for unit, rest in self._rests(spent).items() if rest <= 0), None)

    def refuses(self, spent: Spent, histories: Iterable[TrialHistory], branch: str, *, at_work: float) -> str | None:
        """Returns the limit that leaves too little for a new trial of a branch to come to its first report.

        Beside it `at_work` workers go on, one of which it takes over. What it needs is what trials of its branch have taken,
        or of any branch while that has none; before the first report nothing is known, and a new trial may start.
        """
        if (reached := self.exhausted(spent)) is not None:
            return reached
        reports = [(history.started.branch, self._first(history)) for history in histories]
        known = [(name, report) for name, report in reports if report is not None]
        taken = [report for name, report in known if name == branch] or [report for _, report in known]
        if not taken:
            return None
        seconds = statistics.median(report.seconds + report.evaluation_seconds for report in taken)
        workers = max(at_work, taken[-1].workers)
        needed = {"hours": seconds / HOUR, "worker_seconds": seconds * workers}
        needed["dollars"] = needed["worker_seconds"] / HOUR * self.prices.get(branch, 0.0)
        return next((self._name(unit) for unit, rest in self._rests(spent).items() if needed[unit] > rest), None)

    def _first(self, history: TrialHistory) -> Progress | None:
        return next((report for report in history.reports if report.target_tokens >= self.first_report), None)

    def _rests(self, spent: Spent) -> dict[str, float]:
        """What is left of each limit that is set."""
        used = {"hours": spent.seconds / HOUR, "dollars": spent.dollars, "worker_seconds": spent.worker_seconds}
        limits = {unit: getattr(self.limits, unit) for unit in used}
        return {unit: limit - used[unit] for unit, limit in limits.items() if limit is not None}

    def _name(self, unit: str) -> str:
        return f"search.budget.{unit}={getattr(self.limits, unit):.12g}"
