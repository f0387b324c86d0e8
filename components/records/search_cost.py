"""What a search has cost, from the histories of its trials: worker-seconds by what they went into, and dollars."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pydantic import BaseModel, ConfigDict, Field

from components.records.events import TrialHistory

HOUR = 3600.0


class TrialCost(BaseModel):
    """Worker-seconds of one trial. A worker is paid for while its trial holds a slot, whatever it does there."""

    model_config = ConfigDict(frozen=True)

    training: float = Field(description="Steps that count, each once.")
    evaluation: float
    restarts: float = Field(description="Work repeated after faults, and starts after faults and moves.")
    other: float = Field(description="Starting, loading the base model, writing checkpoints, waiting for the driver.")

    @property
    def total(self) -> float:
        return self.training + self.evaluation + self.restarts + self.other

    @classmethod
    def of(cls, history: TrialHistory) -> TrialCost:
        last = history.last
        training = last.worker_seconds if last else 0.0
        evaluation = last.evaluation_worker_seconds if last else 0.0
        rest = max(0.0, history.held - training - evaluation)
        restarts = min(rest, history.held_in_restarts)
        return cls(training=training, evaluation=evaluation, restarts=restarts, other=rest - restarts)


class SearchCost(BaseModel):
    """Worker-seconds of all trials and of the proof. Resumes are counted, and the time between them is not."""

    model_config = ConfigDict(frozen=True)

    training: float = 0.0
    evaluation: float = 0.0
    restarts: float = 0.0
    other: float = 0.0
    proof: float = Field(0.0, description="Of the winner, by one process, the wait for its machine included.")
    driver_seconds: float = Field(0.0, description="While a driver of the search was running.")
    dollars: float | None = Field(None, description="None where the price of some worker is not known.")
    priced_by: str = "the price table"

    @property
    def worker_seconds(self) -> float:
        return self.training + self.evaluation + self.restarts + self.other + self.proof

    @property
    def sentence(self) -> str:
        """E.g. `cost: 3,412 worker-seconds: 2,800 training, 400 evaluation, ...; $1.20 by the price table`."""
        named = {
            "training": self.training,
            "evaluation": self.evaluation,
            "repeated or started again after faults": self.restarts,
            "starting and saving": self.other,
            "proof": self.proof,
        }
        parts = ", ".join(f"{seconds:,.0f} {name}" for name, seconds in named.items() if round(seconds))
        money = "" if self.dollars is None else f"; ${self.dollars:,.2f} by {self.priced_by}"
        total = sum(round(seconds) for seconds in named.values())  # of the numbers that are shown
        return f"cost: {total:,} worker-seconds" + f": {parts}" * bool(parts) + money


def cost_of_search(
    histories: Iterable[TrialHistory],
    *,
    proof: float = 0.0,
    proven_branch: str = "",
    driver_seconds: float = 0.0,
    prices: Mapping[str, float] | None = None,
    priced_by: str = "the price table",
) -> SearchCost:
    """Adds up.

    Args:
        proof: worker-seconds; `proven_branch` is the winner's.
        prices: dollars of a worker-hour, by branch.
    """
    known = list(histories)
    costs = [TrialCost.of(history) for history in known]
    spent = [(history.started.branch, cost.total) for history, cost in zip(known, costs, strict=True)]
    return SearchCost(
        training=sum(cost.training for cost in costs),
        evaluation=sum(cost.evaluation for cost in costs),
        restarts=sum(cost.restarts for cost in costs),
        other=sum(cost.other for cost in costs),
        proof=proof,
        driver_seconds=driver_seconds,
        dollars=dollars_of([*spent, *([(proven_branch, proof)] if proof else [])], prices or {}),
        priced_by=priced_by,
    )


def dollars_of(spent: Iterable[tuple[str, float]], prices: Mapping[str, float]) -> float | None:
    """Returns the price of (branch, worker-seconds); None if a branch has no price."""
    total = 0.0
    for branch, seconds in spent:
        if branch not in prices:
            return None
        total += seconds / HOUR * prices[branch]
    return total if prices else None
