"""The sign test: do wins and losses come from a fair coin?"""

from __future__ import annotations

import math


def sign_test(wins: int, losses: int) -> float:
    """Returns the exact two-sided p-value; 1 where there is neither a win nor a loss. Ties are left out before."""
    count, fewer = wins + losses, min(wins, losses)
    tail = sum(math.comb(count, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << count))
