"""How far two sequences begin alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def shared_prefix(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Returns the number of first items, or characters, that are equal, of two sequences of one type."""
    alike, end = 0, min(len(one), len(other))
    while (
        alike < end
    ):  # halves, which are compared whole: item by item it would take most of the time of a long conversation
        middle = (alike + end + 1) // 2
        if one[alike:middle] == other[alike:middle]:
            alike = middle
        else:
            end = middle - 1
    return alike
