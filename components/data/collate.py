"""Collates rows of conversations into a Batch. B rows, T tokens; batch.py has the conventions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from components.conversations.chat_formats.rendered import IGNORE_INDEX
from components.data.batch import Batch
from components.data.rows import RowStore
from components.data.tree_layout import depths_of, subtree_ends_of

MULTIPLE = 8  # rows are padded to a multiple of this, which matrix kernels compute faster


def collate(
    store: RowStore, rows: Sequence[tuple[int, ...]], pad_token_id: int, max_tokens: int | None = None
) -> Batch:
    """Concatenates the conversations of each row, each with its own positions and its own segment.

    The positions of padding go on where the last conversation ends, so a row of one conversation has no restart. Without
    rows the batch is one row of padding, without a target.

    Args:
        max_tokens: what no row is padded beyond: a model may have no more positions.
    """
    rows = rows or [()]
    longest = max(sum(int(store.lengths[index]) for index in row) for row in rows)
    padded = max(MULTIPLE, -(-longest // MULTIPLE) * MULTIPLE)
    shape = len(rows), padded if max_tokens is None else max(longest, min(padded, max_tokens), 1)
    token_ids_BT = np.full(shape, pad_token_id, dtype=np.int64)
    labels_BT = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    weights_BT = np.zeros(shape, dtype=np.float32)
    position_ids_BT = np.broadcast_to(np.arange(shape[1]), shape).copy()
    segment_ids_BT = np.zeros(shape, dtype=np.int64)
    subtree_ends_BT = np.broadcast_to(np.arange(1, shape[1] + 1), shape).copy()  # padding is seen by itself only
    has_forks, lengths = False, []
    for number, row in enumerate(rows):
        start = 0
        for segment, index in enumerate(row, start=1):
            token_ids, target_weights = store[index]
            forks = store.forks(index)
            end = start + len(token_ids)
            token_ids_BT[number, start:end] = token_ids
            position_ids_BT[number, start:end] = depths_of(len(token_ids), forks)
            segment_ids_BT[number, start:end] = segment
            subtree_ends_BT[number, start:end] = start + subtree_ends_of(len(token_ids), forks)
            has_forks |= bool(forks)
            # Position t predicts token t + 1, in a tree too: a fork never begins with a target. A conversation's last
            # position predicts nothing.
            weights_BT[number, start : end - 1] = target_weights[1:]
            labels_BT[number, start : end - 1] = np.where(target_weights[1:] > 0, token_ids[1:], IGNORE_INDEX)
            start = end
            lengths.append(len(token_ids))
        if start < shape[1]:
            lengths.append(shape[1] - start)
        if row:
            position_ids_BT[number, start:] = position_ids_BT[number, start - 1] + np.arange(1, shape[1] - start + 1)
    return Batch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        labels_BT=torch.from_numpy(labels_BT),
        weights_BT=torch.from_numpy(weights_BT),
        position_ids_BT=torch.from_numpy(position_ids_BT),
        segment_ids_BT=torch.from_numpy(segment_ids_BT),
        subtree_ends_BT=torch.from_numpy(subtree_ends_BT) if has_forks else None,
        has_restarts=has_forks or any(len(row) > 1 for row in rows),
        targets_2N=torch.from_numpy(np.stack(np.nonzero(labels_BT != IGNORE_INDEX))),
        lengths=tuple(lengths),
    )
