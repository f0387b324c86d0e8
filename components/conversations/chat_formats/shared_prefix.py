"""How far two sequences begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def shared_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns the number of first items, or characters, that are equal."""
    shorter = min(len(one), len(other))
    return next((at for at in range(shorter) if one[at] != other[at]), shorter)
