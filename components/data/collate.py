"""Collates rows of conversations into a Batch. B rows, T tokens; batch.py has the conventions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from components.conversations.chat_formats.rendered import IGNORE_INDEX
from components.data.batch import Batch
from components.data.token_store import TokenStore

MULTIPLE = 8  # rows are padded to a multiple of this, which matrix kernels compute faster


def collate(store: TokenStore, rows: Sequence[tuple[int, ...]], pad_token_id: int) -> Batch:
    """Concatenates the conversations of each row, each with its own positions and its own segment.

    Without rows the batch is one row of padding, without a target.
    """
    rows = rows or [()]
    longest = max(sum(int(store.lengths[index]) for index in row) for row in rows)
    shape = len(rows), max(MULTIPLE, -(-longest // MULTIPLE) * MULTIPLE)
    token_ids_BT = np.full(shape, pad_token_id, dtype=np.int64)
    labels_BT = np.full(shape, IGNORE_INDEX, dtype=np.int64)
    weights_BT = np.zeros(shape, dtype=np.float32)
    position_ids_BT = np.zeros(shape, dtype=np.int64)
    segment_ids_BT = np.zeros(shape, dtype=np.int64)
    for number, row in enumerate(rows):
        start = 0
        for segment, index in enumerate(row, start=1):
            token_ids, target_weights = store[index]
            end = start + len(token_ids)
            token_ids_BT[number, start:end] = token_ids
            position_ids_BT[number, start:end] = np.arange(len(token_ids))
            segment_ids_BT[number, start:end] = segment
            # Position t predicts token t + 1, so a conversation's last position predicts nothing.
            weights_BT[number, start : end - 1] = target_weights[1:]
            labels_BT[number, start : end - 1] = np.where(target_weights[1:] > 0, token_ids[1:], IGNORE_INDEX)
            start = end
    return Batch(
        token_ids_BT=torch.from_numpy(token_ids_BT),
        labels_BT=torch.from_numpy(labels_BT),
        weights_BT=torch.from_numpy(weights_BT),
        position_ids_BT=torch.from_numpy(position_ids_BT),
        segment_ids_BT=torch.from_numpy(segment_ids_BT),
    )
