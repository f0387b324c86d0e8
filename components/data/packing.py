"""Which conversations share a row. Pure functions of lengths and order."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

WINDOW = 1024  # conversations looked at together: far beyond this a better fit is no longer worth the lost shuffling


def pack_rows(lengths: np.ndarray, order: Sequence[int], max_tokens: int) -> list[tuple[int, ...]]:
    """Best-fit decreasing within windows of the order. Every conversation of `order` comes once, none is split.

    Returns rows of at most max_tokens tokens, as tuples of conversation indices, in the order their first one came.
    Raises ValueError if a conversation alone is longer than max_tokens.
    """
    rows: list[tuple[int, ...]] = []
    for start in range(0, len(order), WINDOW):
        rows.extend(_pack_window(lengths, order[start : start + WINDOW], max_tokens))
    return rows


def _pack_window(lengths: np.ndarray, window: Sequence[int], max_tokens: int) -> list[tuple[int, ...]]:
    place = {index: position for position, index in enumerate(window)}
    longest_first = sorted(window, key=lambda index: (-int(lengths[index]), place[index]))
    rooms: list[tuple[int, int]] = []  # (free tokens, row number), ascending: the first that fits fits best
    rows: list[list[int]] = []
    for index in longest_first:
        length = int(lengths[index])
        if length > max_tokens:
            raise ValueError(f"conversation {index} has {length} tokens, and a row holds {max_tokens}")
        found = bisect.bisect_left(rooms, (length, -1))
        if found == len(rooms):
            free, number = max_tokens, len(rows)
            rows.append([])
        else:
            free, number = rooms.pop(found)
        rows[number].append(index)
        bisect.insort(rooms, (free - length, number))
    in_order = [tuple(sorted(row, key=place.__getitem__)) for row in rows]
    return sorted(in_order, key=lambda row: place[row[0]])
