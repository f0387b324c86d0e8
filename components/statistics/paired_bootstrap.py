"""Is one model truly better than another on the same conversations? A paired comparison by any metric."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field

from components.statistics.paired_interval import RESAMPLES, PairedDifferences, effective_number, paired_interval
from components.statistics.selection import ChosenFrom, Selection

# With fewer conversations of equal length than this, nothing is decided. With this many or more, a candidate that is no
# better is promoted in at most 2.5 % of cases at a confidence of 95 %: experiments/benchmarks/gate_calibration.md.
LEAST = 20
WAY_OUT = "add conversations, or hold out more of them (data.eval_fraction, data.eval)"
LOSS, NATS, BITS = "eval_loss", "nats per target", "bits per byte"


class ComparisonState(StrEnum):
    """What a comparison says of the candidate."""

    BETTER = "better"
    NOT_BETTER = "not better"
    TOO_FEW = "too few to tell"


class Comparison(BaseModel):
    """`difference` is how much better the candidate is, in the unit of the metric: above 0 it is better.

    `low` and `high` are the confidence interval's ends, None where the conversations set no bound. If no conversation is
    left to compare on, values and interval are those of all that are held out.
    """

    model_config = ConfigDict(frozen=True)

    other: str = Field(description="base or incumbent")
    metric: str = Field(LOSS, description="What is compared.")
    unit: str = Field(NATS, description="Of values, difference and interval; empty for a metric without one.")
    candidate_loss: float = Field(description="The metric's value over all conversations together, a loss or not.")
    other_loss: float
    difference: float
    low: float | None
    high: float | None
    confidence: float = Field(description="Of this interval, read alone.")
    beats: bool
    conversations: int | None = Field(
        None, description="How many were compared; null in results that do not count them."
    )
    effective: float | None = Field(
        None, description="As many conversations of equal length say as much: below `conversations` if lengths differ."
    )
    needed: int | None = Field(None, description="How many conversations like these are needed to decide.")
    chosen_from: ChosenFrom | None = Field(
        None, description="What the candidate is the best of on these conversations; null if they chose nothing."
    )
    family: int = Field(1, description="How many comparisons are shown together, this one included.")
    note: str = Field("", description="What limits the comparison.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> ComparisonState:
        if self.conversations is not None and self.needed is not None and self.conversations < self.needed:
            return ComparisonState.TOO_FEW
        return ComparisonState.BETTER if self.beats else ComparisonState.NOT_BETTER

    @computed_field  # type: ignore[prop-decorator]
    @property
    def joint_confidence(self) -> float:
        """At least so sure is that the intervals of the whole family hold at once (Bonferroni's inequality)."""
        return max(0.0, 1 - self.family * (1 - self.confidence))

    def sentence(self) -> str:
        if self.state is ComparisonState.TOO_FEW:
            return "; ".join(filter(None, [f"{self.too_few(f'beats the {self.other}')}: {WAY_OUT}", self.note]))
        how = "beats" if self.beats else "does not beat"
        metric = "" if self.metric == LOSS else f" in {self.metric}"
        compared = f"{how} the {self.other}{metric} on held-out conversations: {self.numbers()}"
        return "; ".join(filter(None, [compared, self.note]))

    def numbers(self) -> str:
        """Values, difference and interval, with the confidence that they have."""
        ends = ", ".join("unbounded" if end is None else f"{end:+.4f}" for end in (self.low, self.high))
        compared = (
            f"{self.candidate_loss:.4f} against {self.other_loss:.4f}{self.unit and ' '}{self.unit}, difference"
            f" {self.difference:+.4f} [{ends}] at {_percent(self.confidence)}"
        )
        if self.family > 1:
            both = "both" if self.family == 2 else f"all {self.family}"
            compared += f" ({_percent(self.joint_confidence)} for {both} intervals together)"
        return f"{compared}; {self.chosen_from.sentence()}" if self.chosen_from else compared

    def too_few(self, claim: str) -> str:
        """Says that whether it `claim` is not decided; used where the conversations are fewer than needed."""
        count, needed = self.conversations or 0, self.needed or 0
        unequal = f" (as unequal in length as they are, they count as {self.effective:.1f})" if count >= LEAST else ""
        return (
            f"too few to tell whether it {claim}: {needed} held-out conversations needed, there"
            f" {'is' if count == 1 else 'are'} {count}{unequal}"
        )


class Scores(Protocol):
    """One metric on each conversation; its value is sum(sums) / sum(weights). A weight of 0: it says nothing of that one."""

    @property
    def sums(self) -> Sequence[float]: ...
    @property
    def weights(self) -> Sequence[float]: ...


class Metric(Protocol):
    """`direction` is `minimize` where less is better, as of a loss, else `maximize`."""

    @property
    def name(self) -> str: ...
    @property
    def direction(self) -> str: ...


def compare(
    other: str,
    candidate: Scores,
    opponent: Scores,
    metric: Metric,
    *,
    confidence: float,
    selection: Selection | None = None,
    family: int = 1,
    note: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Comparison:
    """Is the candidate better by this metric, on the conversations of which it says something for both?

    Args:
        confidence: the candidate beats the other if the whole two-sided interval lies above 0, and the conversations are
            enough to trust it.
        selection: what the candidate was chosen from on these conversations, for which the interval is corrected. None if
            other conversations chose it.
        family: how many comparisons are shown together. Neither interval nor decision depends on it: where all opponents
            must be beaten, each at this confidence, the whole claim is wrong as seldom as one comparison is.

    Raises ValueError for scores that cannot be paired.
    """
    sums, opponents, weights, others = (
        np.asarray(values, dtype=float)
        for values in (candidate.sums, opponent.sums, candidate.weights, opponent.weights)
    )
    if not len(sums) == len(opponents) == len(weights) == len(others) > 0:
        raise ValueError(f"{len(sums)}, {len(opponents)} and {len(weights)} conversations cannot be paired")
    both = (weights > 0) & (others > 0)
    if not both.any() or (weights[both] != others[both]).any():
        raise ValueError(f"{metric.name}: two models that are compared must weigh the same conversations equally")
    sums, opponents, weights = sums[both], opponents[both], weights[both]
    sign = -1.0 if metric.direction == "minimize" else 1.0
    candidates_CN = sums[None] if selection is None else np.vstack([sums[None], selection.sums_CN[:, both]])
    paired = PairedDifferences(sign * (candidates_CN - opponents).T, weights)
    tests = selection.tests if selection else 1
    low, high = paired_interval(paired, confidence, seed=seed, tests=tests, resamples=resamples)
    total, needed = weights.sum(), number_needed(weights)
    return Comparison(
        other=other,
        metric=metric.name,
        unit=NATS if metric.name == LOSS else "",
        candidate_loss=float(sums.sum() / total),
        other_loss=float(opponents.sum() / total),
        difference=float(sign * (sums.sum() - opponents.sum()) / total),
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        confidence=confidence,
        beats=low > 0 and len(weights) >= needed,
        conversations=len(weights),
        effective=effective_number(weights),
        needed=needed,
        chosen_from=selection.chosen_from if selection else None,
        family=family,
        note=note,
    )


@dataclass(frozen=True)
class _Losses:
    sums: Sequence[float]
    weights: Sequence[float]


@dataclass(frozen=True)
class _Loss:
    name: str = LOSS
    direction: str = "minimize"


def paired_bootstrap(
    other: str,
    candidate_sums: Sequence[float],
    other_sums: Sequence[float],
    num_targets: Sequence[int],
    *,
    confidence: float,
    seed: int = 0,
    note: str = "",
) -> Comparison:
    """`compare` by loss, on conversations that chose nothing.

    Args:
        candidate_sums, other_sums: loss of each conversation in nats, summed over its targets.
        num_targets: targets of each conversation, the same for both models.
    """
    return compare(
        other,
        _Losses(candidate_sums, num_targets),
        _Losses(other_sums, num_targets),
        _Loss(),
        confidence=confidence,
        seed=seed,
        note=note,
    )


def number_needed(num_targets: np.ndarray) -> int:
    """How many conversations, as unequal in length as these, say as much as LEAST equal ones."""
    return max(LEAST, math.ceil(LEAST * len(num_targets) / effective_number(num_targets) - 1e-9))


def _percent(share: float) -> str:
    """E.g. 95%, 97.5%, 99.9%."""
    return f"{100 * share:.4g}%"
