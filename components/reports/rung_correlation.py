"""How well each rung has foretold the end: the rank correlation over the trials that have reached both.

Trials that were stopped never reach the end, so it is known of those only that early stopping let pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from components.records.events import TARGET_TOKENS, TrialHistory
from components.reports.leaderboard import counted
from components.statistics.rank_correlation import spearman


class RungCorrelation(BaseModel):
    """One mark, in target tokens, and one branch (None: all trials, which compete with each other)."""

    model_config = ConfigDict(frozen=True)

    target_tokens: int
    counted: str = Field(TARGET_TOKENS, description="What `target_tokens` counts: target bytes if bases differ.")
    is_rung: bool = Field(description="Trials are stopped here; else it is a regular evaluation.")
    branch: str | None
    reached: int = Field(description="How many trials have come here.")
    compared: int = Field(description="How many of them have come to the end of the budget, too.")
    correlation: float | None = Field(description="Spearman's; null for fewer than 3 trials, or where all are equal.")

    @property
    def sentence(self) -> str:
        where = f"{'rung' if self.is_rung else 'evaluation'} at {self.target_tokens:,} {self.counted}"
        whose = f", {self.branch}" if self.branch else ""
        if self.correlation is None:
            return f"{where}{whose}: not known, for {self.compared} of the {self.reached} trials there came to the end"
        return f"{where}{whose}: {self.correlation:+.2f} over {self.compared} of the {self.reached} trials there"


def rung_correlations(
    histories: Iterable[TrialHistory],
    *,
    budget: int,
    rungs: Sequence[int],
    evaluations: Sequence[int],
    branches: Sequence[str | None],
) -> tuple[RungCorrelation, ...]:
    """Returns one for each mark below the budget and each of `branches`; [None] takes all trials together.

    Trials with weights of another one, or a budget of their own, are not comparable and left out. Marks are in target tokens.
    """
    known = [history for history in histories if history.on_equal_terms]
    marks = sorted({*rungs, *(mark for mark in evaluations if mark < budget)})
    return tuple(
        _correlation([each for each in known if branch in (None, each.started.branch)], mark, budget, branch, rungs)
        for branch in branches
        for mark in marks
    )


def _correlation(
    histories: Sequence[TrialHistory], mark: int, budget: int, branch: str | None, rungs: Sequence[int]
) -> RungCorrelation:
    here = [(_objective(history, mark, at_rung=mark in rungs), _objective(history, budget)) for history in histories]
    pairs = [(there, end) for there, end in here if there is not None and end is not None]
    return RungCorrelation(
        target_tokens=mark,
        counted=counted(histories),
        is_rung=mark in rungs,
        branch=branch,
        reached=sum(there is not None for there, _ in here),
        compared=len(pairs),
        correlation=spearman([there for there, _ in pairs], [end for _, end in pairs]),
    )


def _objective(history: TrialHistory, mark: int, *, at_rung: bool = False) -> float | None:
    """Of the first report at a mark or after it; None if it has not come so far, or has no number there."""
    report = next((report for report in history.reports if report.target_tokens >= mark), None)
    if report is None:
        return None
    objective = report.rung_objective if at_rung else report.objective
    return objective if math.isfinite(objective) else None
