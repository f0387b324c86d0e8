"""Packs conversations into rows. Pure functions of lengths and order."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np

WINDOW = 1024  # conversations packed together: with more, the better fit is not worth the lost shuffling


def pack_rows(lengths: np.ndarray, order: Sequence[int], max_tokens: int) -> list[tuple[int, ...]]:
    """Packs by best-fit decreasing within windows of the order. Every conversation of `order` is in one row, none is split.

    Returns rows of at most max_tokens tokens, as tuples of conversation indices, in the order of their first conversation.
    Raises ValueError if one conversation is longer than max_tokens.
    """
    rows: list[tuple[int, ...]] = []
    for start in range(0, len(order), WINDOW):
        rows.extend(_pack_window(lengths, order[start : start + WINDOW], max_tokens))
    return rows


def _pack_window(lengths: np.ndarray, window: Sequence[int], max_tokens: int) -> list[tuple[int, ...]]:
    position_of = {index: position for position, index in enumerate(window)}
    longest_first = sorted(window, key=lambda index: (-int(lengths[index]), position_of[index]))
    spaces: list[
        tuple[int, int]
    ] = []  # (free tokens, row number), ascending: the first space that fits is the best fit
    rows: list[list[int]] = []
    for index in longest_first:
        length = int(lengths[index])
        if length > max_tokens:
            raise ValueError(f"conversation {index} has {length} tokens, and a row holds {max_tokens}")
        found = bisect.bisect_left(spaces, (length, -1))
        if found == len(spaces):
            free, number = max_tokens, len(rows)
            rows.append([])
        else:
            free, number = spaces.pop(found)
        rows[number].append(index)
        bisect.insort(spaces, (free - length, number))
    in_order = [tuple(sorted(row, key=position_of.__getitem__)) for row in rows]
    return sorted(in_order, key=lambda row: position_of[row[0]])
