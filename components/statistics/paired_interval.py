"""The interval of a difference that is paired over conversations, also for the best of many candidates. Plain NumPy.

Letters of shapes: N conversations, C candidates, B resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

RESAMPLES = 10_000
ROUNDING = 1e-9  # of a difference; an error below it is none
MAX_DRAWN_AT_ONCE = 2**21  # conversations; 16 MiB of counts
# A small sample holds too few of the rare conversations that decide, and looks less skewed than what it was drawn from. Of so
# many conversations (as `skewness_number` counts them) half of the tail is kept: experiments/benchmarks/gate_calibration.md.
HALF_OF_THE_TAIL = 25.0


@dataclass(frozen=True, eq=False)
class PairedDifferences:
    """How far candidates are from one opponent: more is better. The first candidate is the one that is judged.

    `differences_NC` are summed over what `weights_N` count, e.g. nats over targets; a difference is the sum by the weight.
    """

    differences_NC: np.ndarray
    weights_N: np.ndarray

    @property
    def count(self) -> int:
        return len(self.weights_N)

    @property
    def total(self) -> float:
        return float(self.weights_N.sum())

    @property
    def ratios(self) -> np.ndarray:
        """Shape (C,)."""
        return np.asarray(self.differences_NC.sum(axis=0) / self.total)

    @property
    def residuals(self) -> np.ndarray:
        """Shape (N, C)."""
        return np.asarray(self.differences_NC - self.ratios * self.weights_N[:, None])

    @property
    def errors(self) -> np.ndarray:
        """The standard error of each difference, shape (C,)."""
        squares_C = (self.residuals**2).sum(axis=0)
        return np.asarray(np.sqrt(self.count / (self.count - 1) * squares_C) / self.total)

    def columns(self, chosen: np.ndarray) -> Self:
        return type(self)(self.differences_NC[:, chosen], self.weights_N)


def effective_number(weights_N: np.ndarray) -> float:
    """How many conversations of equal length say as much as these."""
    weights = weights_N.astype(float)
    return float(weights.sum() ** 2 / (weights**2).sum())


def skewness_number(weights_N: np.ndarray) -> float:
    """How many conversations of equal length have as skewed a mean as these: fewer than are as precise, if lengths differ."""
    weights = weights_N.astype(float)
    return float((weights**2).sum() ** 3 / (weights**3).sum() ** 2)


def paired_interval(
    paired: PairedDifferences, confidence: float, *, seed: int = 0, tests: int = 1, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Returns (low, high) of the first candidate's difference; infinite where the conversations set no bound.

    Two intervals are made, and each end is that of the wider one. The studentized bootstrap draws as many conversations as
    there are, with replacement: how many standard errors of its own does a resample deviate from the sample? It is wider on
    the side where few conversations decide, and too narrow where tails are heavy. Student's t is right there. Of the tail
    outside, 1 - HALF_OF_THE_TAIL / (n + HALF_OF_THE_TAIL) is kept, which makes up for skewness that n conversations hide.

    With other candidates, from which the first one was chosen by its difference, the ends are also at least as far away as
    the largest of all candidates' deviations is in all but the tail of the resamples: each candidate is centred on its own
    difference, and a resample is the same for all (White's reality check, studentized; Romano and Wolf). Candidates that
    are worse than the opponent by more than sqrt(2 log log n) standard errors are left out (Hansen): luck chooses none.

    Args:
        tests: the interval holds for so many candidates at once by Bonferroni's inequality, without their losses.
    """
    paired = _with_finite_columns(paired)
    ratio = float(paired.ratios[0])
    if not math.isfinite(ratio) or paired.count == 1:
        return -math.inf, math.inf
    error = float(paired.errors[0])
    if error <= ROUNDING * abs(ratio):
        return ratio, ratio
    kept = _that_could_win(paired)
    tail = (1 - confidence) / 2 / tests
    share = (number := skewness_number(paired.weights_N)) / (number + HALF_OF_THE_TAIL)
    generator = np.random.default_rng(seed)
    ways = (
        _studentized_deviations(kept, generator, resamples),
        _students_t(kept, generator, resamples),
    )
    below, above = 0.0, 0.0
    for deviations_BC in ways:
        for signed_BC, is_low in ((deviations_BC, True), (-deviations_BC, False)):
            end = _quantile(signed_BC[:, 0], tail * share)
            if signed_BC.shape[1] > 1:
                signed_BC = np.where(np.isfinite(signed_BC), signed_BC, 0.0)  # where one does not vary it says nothing
                end = max(end, _quantile(signed_BC.max(axis=1), tail * share ** (1 / signed_BC.shape[1])))
            below, above = (max(below, end), above) if is_low else (below, max(above, end))
    return ratio - below * error, ratio + above * error


def _with_finite_columns(paired: PairedDifferences) -> PairedDifferences:
    """The first candidate, and the others without those whose loss is not finite: such a one is never chosen."""
    finite_C = np.isfinite(paired.differences_NC).all(axis=0)
    finite_C[0] = True
    return paired.columns(finite_C)


def _that_could_win(paired: PairedDifferences) -> PairedDifferences:
    ratios_C, errors_C = paired.ratios, paired.errors
    least = -math.sqrt(2 * math.log(max(math.log(paired.count), 1.0)))
    varies_C = errors_C > ROUNDING * np.abs(ratios_C)
    kept_C = varies_C & (ratios_C >= least * errors_C)
    kept_C[0] = True
    return paired.columns(kept_C)


def _quantile(values_B: np.ndarray, tail: float) -> float:
    """The value that a share of `tail` lies above; infinite if that is less than one of the values and one more."""
    position = math.ceil((1 - tail) * (len(values_B) + 1) - 1e-9) - 1
    return float(np.partition(values_B, position)[position]) if position < len(values_B) else math.inf


def _studentized_deviations(paired: PairedDifferences, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Returns each resample's deviation from each candidate's difference, in its standard errors, shape (B, C).

    Infinite where the resample's errors are 0. A resample is a count of each conversation, so sums over it are products of
    matrices.
    """
    weights_N, residuals_NC = paired.weights_N, paired.residuals
    squares_NC, crossed_NC, squared_N = residuals_NC**2, residuals_NC * weights_N[:, None], weights_N**2
    factor = paired.count / (paired.count - 1)
    parts = []
    for counts_BN in resampled(paired.count, generator, resamples):
        totals_B1 = (counts_BN @ weights_N)[:, None]
        shifts_BC = (counts_BN @ residuals_NC) / totals_B1
        sums_BC = counts_BN @ squares_NC - 2 * shifts_BC * (counts_BN @ crossed_NC)
        sums_BC += shifts_BC**2 * (counts_BN @ squared_N)[:, None]
        errors_BC = np.sqrt(factor * np.maximum(sums_BC, 0.0)) / totals_B1
        errors_BC[errors_BC <= np.sqrt(ROUNDING) * np.abs(shifts_BC)] = 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            parts.append(np.nan_to_num(shifts_BC / errors_BC, nan=0.0, posinf=np.inf, neginf=-np.inf))
    return np.concatenate(parts)


def resampled(count: int, generator: np.random.Generator, resamples: int) -> Iterator[np.ndarray]:
    """Yields how often each conversation was drawn, shape (B, N), in blocks."""
    at_once = max(1, MAX_DRAWN_AT_ONCE // count)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(float)


def _students_t(paired: PairedDifferences, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Draws of Student's t, correlated over candidates as their differences are, shape (B, C).

    The degrees of freedom are those of as many conversations of equal length as say as much.
    """
    residuals_NC = paired.residuals
    normed_NC = residuals_NC / np.sqrt((residuals_NC**2).sum(axis=0))
    values_C, vectors_CC = np.linalg.eigh(normed_NC.T @ normed_NC)
    roots_CC = vectors_CC * np.sqrt(np.maximum(values_C, 0.0))
    degrees = max(effective_number(paired.weights_N) - 1, 1.0)
    normal_BC = generator.normal(size=(resamples, len(values_C))) @ roots_CC.T
    return np.asarray(normal_BC / np.sqrt(generator.chisquare(degrees, size=(resamples, 1)) / degrees))
