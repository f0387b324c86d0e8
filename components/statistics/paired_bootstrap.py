"""Is one model truly better than another on the same conversations? A paired, studentized bootstrap. Plain NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, computed_field

RESAMPLES = 10_000
# With fewer conversations of equal length than this, nothing is decided. With this many, a candidate that is no better is
# promoted in at most about 5 % of cases, for a nominal 2.5 %: experiments/benchmarks/gate_coverage.md.
LEAST = 20
WAY_OUT = "add conversations, or hold out more of them (data.eval_fraction, data.eval)"
NATS_PER_TARGET, BITS_PER_BYTE = "nats per target", "bits per byte"
ROUNDING = 1e-9  # of a difference; an error below it is none
MAX_DRAWN_AT_ONCE = 2**22  # conversations; 32 MiB of indices


class ComparisonState(StrEnum):
    """What a comparison says of the candidate."""

    BETTER = "better"
    NOT_BETTER = "not better"
    TOO_FEW = "too few to tell"


class Comparison(BaseModel):
    """`difference` is the other's loss minus the candidate's, in `unit`: above 0 the candidate is better.

    `low` and `high` are the confidence interval's ends, None where the conversations set no bound. If no conversation is
    left to compare on, losses and interval are those of all that are held out.
    """

    model_config = ConfigDict(frozen=True)

    other: str = Field(description="base or incumbent")
    candidate_loss: float
    other_loss: float
    difference: float
    low: float | None
    high: float | None
    confidence: float
    beats: bool
    conversations: int | None = Field(
        None, description="How many were compared; null in results that do not count them."
    )
    effective: float | None = Field(
        None, description="As many conversations of equal length say as much: below `conversations` if lengths differ."
    )
    needed: int | None = Field(None, description="How many conversations like these are needed to decide.")
    note: str = Field("", description="What limits the comparison.")
    unit: str = Field(NATS_PER_TARGET, description="Of losses, difference and interval.")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def state(self) -> ComparisonState:
        if self.conversations is not None and self.needed is not None and self.conversations < self.needed:
            return ComparisonState.TOO_FEW
        return ComparisonState.BETTER if self.beats else ComparisonState.NOT_BETTER

    def sentence(self) -> str:
        if self.state is ComparisonState.TOO_FEW:
            return "; ".join(filter(None, [f"{self._too_few()}: {WAY_OUT}", self.note]))
        how = "beats" if self.beats else "does not beat"
        ends = ", ".join("unbounded" if end is None else f"{end:+.4f}" for end in (self.low, self.high))
        compared = (
            f"{how} the {self.other} on held-out conversations: {self.candidate_loss:.4f} against {self.other_loss:.4f}"
            f" {self.unit}, difference {self.difference:+.4f} [{ends}] at {self.confidence:.0%}"
        )
        return "; ".join(filter(None, [compared, self.note]))

    def _too_few(self) -> str:
        count, needed = self.conversations or 0, self.needed or 0
        unequal = f" (as unequal in length as they are, they count as {self.effective:.1f})" if count >= LEAST else ""
        return (
            f"too few to tell whether it beats the {self.other}: {needed} held-out conversations needed, there"
            f" {'is' if count == 1 else 'are'} {count}{unequal}"
        )


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
    """Paired comparison over conversations, by the studentized bootstrap.

    Args:
        candidate_sums, other_sums: loss of each conversation in nats, summed over its targets.
        num_targets: targets of each conversation, the same for both models.
        confidence: the candidate beats the other if the whole two-sided interval lies above 0, and the conversations are
            enough to trust it.
    """
    candidate, opponent, targets = (
        np.asarray(values, dtype=float) for values in (candidate_sums, other_sums, num_targets)
    )
    if not len(candidate) == len(opponent) == len(targets) > 0:
        raise ValueError(f"{len(candidate)}, {len(opponent)} and {len(targets)} conversations cannot be paired")
    total, effective, needed = targets.sum(), effective_number(targets), number_needed(targets)
    low, high = studentized_interval(opponent - candidate, targets, confidence, np.random.default_rng(seed))
    return Comparison(
        other=other,
        candidate_loss=float(candidate.sum() / total),
        other_loss=float(opponent.sum() / total),
        difference=float((opponent.sum() - candidate.sum()) / total),
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        confidence=confidence,
        beats=low > 0 and len(targets) >= needed,
        conversations=len(targets),
        effective=effective,
        needed=needed,
        note=note,
    )


def effective_number(num_targets: np.ndarray) -> float:
    """How many conversations of equal length say as much as these."""
    targets = num_targets.astype(float)
    return float(targets.sum() ** 2 / (targets**2).sum())


def number_needed(num_targets: np.ndarray) -> int:
    """How many conversations, as unequal in length as these, say as much as LEAST equal ones."""
    return max(LEAST, math.ceil(LEAST * len(num_targets) / effective_number(num_targets) - 1e-9))


def studentized_interval(
    differences: np.ndarray,
    targets: np.ndarray,
    confidence: float,
    generator: np.random.Generator,
    resamples: int = RESAMPLES,
) -> tuple[float, float]:
    """Returns (low, high) of the difference per target; infinite where the conversations set no bound.

    Each resample draws as many conversations as there are, with replacement. It deviates from the sample's difference by a
    multiple of its own standard error. The interval's ends are quantiles of these multiples, times the sample's standard
    error. So the interval is wider on the side where few conversations decide.
    """
    if not np.isfinite(differences).all():
        return -math.inf, math.inf
    ratio, error = _ratio_and_error(differences, targets)
    if error <= ROUNDING * abs(ratio):
        return ratio, ratio
    if math.isinf(error):
        return -math.inf, math.inf
    residuals = differences - ratio * targets
    deviations = np.sort(_deviations(residuals, targets, generator, resamples))
    tail = (1 - confidence) / 2
    above = deviations[math.ceil((1 - tail) * resamples) - 1]
    below = deviations[math.floor(tail * resamples)]
    return float(ratio - above * error), float(ratio - below * error)


def _ratio_and_error(differences: np.ndarray, targets: np.ndarray) -> tuple[float, float]:
    """Returns the difference per target and its standard error, which is infinite for one conversation."""
    total, count = targets.sum(), len(targets)
    ratio = differences.sum() / total
    if count == 1:
        return float(ratio), math.inf
    squares = ((differences - ratio * targets) ** 2).sum()
    return float(ratio), float(np.sqrt(count / (count - 1) * squares) / total)


def _deviations(
    residuals: np.ndarray, targets: np.ndarray, generator: np.random.Generator, resamples: int
) -> np.ndarray:
    """Returns each resample's deviation from the sample's difference, in its standard errors; infinite if these are 0."""
    count = len(targets)
    at_once = max(1, MAX_DRAWN_AT_ONCE // count)
    parts = []
    for start in range(0, resamples, at_once):
        drawn = generator.integers(count, size=(min(at_once, resamples - start), count))
        totals, missed = targets[drawn].sum(axis=1), residuals[drawn]
        shifts = missed.sum(axis=1) / totals
        missed -= shifts[:, None] * targets[drawn]
        errors = np.sqrt(count / (count - 1) * (missed**2).sum(axis=1)) / totals
        errors[errors <= ROUNDING * np.abs(shifts)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.nan_to_num(shifts / errors, nan=0.0, posinf=np.inf, neginf=-np.inf))
    return np.concatenate(parts)
