"""Is a candidate no worse than another model by more than a margin? What is shown by an interval, not by a lack of proof."""

from __future__ import annotations

import math
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field

from components.statistics.paired_bootstrap import WAY_OUT, Comparison, Metric, Scores, compare
from components.statistics.paired_interval import RESAMPLES


class NoWorseState(StrEnum):
    """What the conversations say."""

    NO_WORSE = "no worse"
    NOT_SHOWN = "not shown"
    WORSE = "worse"
    TOO_FEW = "too few to tell"


class NoWorse(BaseModel):
    """Whether the candidate is worse than the other by at most `margin`, in the unit of the metric.

    With a margin of 0 this is about these conversations alone: no number of them shows that a model is as good everywhere.
    `worse_on` counts those on which the candidate is worse.
    """

    model_config = ConfigDict(frozen=True)

    comparison: Comparison
    margin: float = Field(ge=0)
    worse_on: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> NoWorseState:
        found = self.comparison
        if self.margin == 0 and not self.worse_on:
            return NoWorseState.NO_WORSE
        if (found.conversations or 0) < (found.needed or 0):
            return NoWorseState.TOO_FEW
        if found.low is not None and found.low >= -self.margin:
            return NoWorseState.NO_WORSE
        surely_worse = found.high is not None and found.high < -self.margin
        return NoWorseState.WORSE if surely_worse else NoWorseState.NOT_SHOWN

    @property
    def holds(self) -> bool:
        return self.state is NoWorseState.NO_WORSE

    def sentence(self) -> str:
        found, by = self.comparison, f"by more than {self.margin:g}" if self.margin else "at all"
        than = f"worse than the {found.other} in {found.metric}"
        note = f"; {found.note}" if found.note else ""
        if self.state is NoWorseState.TOO_FEW:
            return f"{found.too_few('is no ' + than)}: {WAY_OUT}{note}"
        if self.holds and self.margin == 0:
            return f"is {than} on none of {found.conversations} held-out conversations{note}"
        how = {NoWorseState.NO_WORSE: "is not", NoWorseState.WORSE: "is", NoWorseState.NOT_SHOWN: "may be"}[self.state]
        return f"{how} {than} {by}: {found.numbers()}{note}"


def no_worse(
    other: str,
    candidate: Scores,
    opponent: Scores,
    metric: Metric,
    *,
    margin: float,
    confidence: float,
    note: str = "",
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> NoWorse:
    """The lower end of the two-sided interval of `compare` must not lie below -margin.

    So a candidate that is worse by more than the margin gets through as seldom as one that is no better is found better. Of
    scores that are 0 or 1 the interval is that of the few conversations that differ, which may be none by luck: the bound
    of the binomial distribution on how often the candidate is worse then sets the lower end.

    Raises ValueError for scores that cannot be paired.
    """
    found = compare(
        other, candidate, opponent, metric, confidence=confidence, note=note, seed=seed, resamples=resamples
    )
    better_by = np.asarray(candidate.sums, dtype=float) - np.asarray(opponent.sums, dtype=float)
    if metric.direction == "minimize":
        better_by = -better_by
    said = (np.asarray(candidate.weights) > 0) & (np.asarray(opponent.weights) > 0)
    worse_on, count = int((better_by[said] < 0).sum()), int(said.sum())
    if _are_yes_or_no(candidate, said) and _are_yes_or_no(opponent, said) and found.low is not None:
        better = float((better_by[said] > 0).mean())
        bound = better - largest_share(worse_on, count, (1 - confidence) / 2)
        found = found.model_copy(update={"low": min(found.low, bound)})
    return NoWorse(comparison=found, margin=margin, worse_on=worse_on)


def _are_yes_or_no(scores: Scores, said: np.ndarray) -> bool:
    sums, weights = np.asarray(scores.sums)[said], np.asarray(scores.weights)[said]
    return bool(np.isin(sums, (0, 1)).all() and (weights == 1).all())


def largest_share(found: int, count: int, tail: float) -> float:
    """The largest share of which so few are found among `count` in at least `tail` of cases (Clopper and Pearson)."""
    if found == count:
        return 1.0
    low, high = found / count, 1.0
    for _ in range(50):
        share = (low + high) / 2
        low, high = (share, high) if _at_most(found, count, share) > tail else (low, share)
    return high


def _at_most(found: int, count: int, share: float) -> float:
    """The probability of at most `found` of `count`, each with probability `share` strictly between 0 and 1."""
    return math.fsum(
        math.exp(
            math.lgamma(count + 1)
            - math.lgamma(each + 1)
            - math.lgamma(count - each + 1)
            + each * math.log(share)
            + (count - each) * math.log1p(-share)
        )
        for each in range(found + 1)
    )
