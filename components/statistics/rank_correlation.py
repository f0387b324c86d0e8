"""Spearman's rank correlation: do two measurements put the same things in the same order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Returns the correlation of the ranks, from -1 to 1; equal values share the mean of their ranks.

    None for fewer than 3 pairs, or where all values of one side are equal: there is no order then.
    """
    ranks = [_ranks(np.asarray(values, dtype=np.float64)) for values in (first, second)]
    if len(first) < 3 or any(np.ptp(each) == 0 for each in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values_N: np.ndarray) -> np.ndarray:
    _, group_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean_rank: np.ndarray = last - (counts - 1) / 2
    return mean_rank[group_N]
