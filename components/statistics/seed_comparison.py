"""How far apart are two configurations, if conversations and seeds were drawn again? Each was trained with several seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import t as student

from components.statistics.paired_interval import PairedDifferences


@dataclass(frozen=True, kw_only=True)
class SeededScores:
    """One configuration on one split. `sums_SC` has a row for each seed and a column for each conversation.

    A seed's value is the sum of its row over the sum of `weights_C`, which all seeds share. Less is better.
    """

    sums_SC: np.ndarray
    weights_C: np.ndarray

    @property
    def by_seed(self) -> np.ndarray:
        """The value of each seed."""
        return np.asarray(self.sums_SC.sum(axis=1) / self.weights_C.sum())

    @property
    def seeds(self) -> int:
        return len(self.sums_SC)

    def is_of(self, other: SeededScores) -> bool:
        """Whether both are scores of the same conversations, with the same weights."""
        return np.array_equal(self.weights_C, other.weights_C)

    @property
    def value(self) -> float:
        return float(self.by_seed.mean())


class SeedComparison(BaseModel):
    """`difference` is the first one's mean over its seeds minus the other's; the truth lies within `half_width` of it."""

    model_config = ConfigDict(frozen=True)

    difference: float
    half_width: float
    confidence: float
    seeds: int = Field(description="Of the one with fewer. With one nothing is known of what a seed decides.")
    conversations: int

    @property
    def within_noise(self) -> bool:
        return abs(self.difference) <= self.half_width


def compare_seeds(one: SeededScores, other: SeededScores, *, confidence: float, comparisons: int = 1) -> SeedComparison:
    """Compares two configurations on the same conversations.

    The variance of the difference is that over the conversations, of the means over seeds and in pairs, plus that over each
    side's seeds. What seeds and conversations decide together is counted in both, so the interval is rather too wide. Its
    quantile is Student's, with Welch's and Satterthwaite's degrees of freedom.

    Args:
        comparisons: how many intervals are to hold at once; each is widened for that (Bonferroni).

    Raises:
        ValueError: the two have other conversations.
    """
    if not one.is_of(other):
        raise ValueError(f"{len(one.weights_C)} and {len(other.weights_C)} conversations, or other weights of theirs")
    difference = one.value - other.value
    terms = [_over_conversations(one, other), _over_seeds(one.by_seed), _over_seeds(other.by_seed)]
    variance = sum(term for term, _ in terms)
    squares = sum(term**2 / freedom for term, freedom in terms if term > 0)
    tail = (1 - confidence) / 2 / comparisons
    quantile = float(student.isf(tail, variance**2 / squares)) if squares > 0 else 0.0
    return SeedComparison(
        difference=difference,
        half_width=quantile * math.sqrt(variance),
        confidence=confidence,
        seeds=min(one.seeds, other.seeds),
        conversations=len(one.weights_C),
    )


def _over_conversations(one: SeededScores, other: SeededScores) -> tuple[float, int]:
    """Returns (variance of the difference, degrees of freedom), of the ratio of sums, for both seeds' means."""
    differences_C = one.sums_SC.mean(axis=0) - other.sums_SC.mean(axis=0)
    paired = PairedDifferences(differences_C[:, None], one.weights_C)
    return (float(paired.errors[0]) ** 2, paired.count - 1) if paired.count > 1 else (math.inf, 1)


def _over_seeds(values_S: np.ndarray) -> tuple[float, int]:
    """Returns (variance of the mean, degrees of freedom); nothing is known of one seed."""
    if len(values_S) < 2:
        return 0.0, 1
    return float(values_S.var(ddof=1) / len(values_S)), len(values_S) - 1
