"""Measures whether a model answers on the paths of a prefix tree as on the same paths in rows of their own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from components.data.attention_masks import mask_form
from components.data.batch import Batch
from components.data.model_inputs import model_inputs
from components.models.token_id_check import rows_of
from components.training.packed_isolation import unscored_batch

# Two trees and padding in one row. Of each: (start, end, the depth at which it continues the path before it).
TREES = (((0, 9, 0), (9, 15, 6), (15, 22, 3)), ((22, 28, 0), (28, 34, 2)))
LENGTH = 36


@torch.no_grad()
def tree_distance(model: nn.Module, attention: str) -> float:
    """Returns by how much the logits of trees differ from those of their paths alone, as a share of the latter."""
    whole: Any = model
    batch = _batch(rows_of(model))
    inputs = model_inputs(batch, attention, mask_form(model.config))
    answered = whole(**inputs, use_cache=False).logits[0]
    squares, total = 0.0, 0.0
    for path in _paths():
        alone = whole(
            input_ids=batch.token_ids_BT[:, path], position_ids=torch.arange(len(path))[None], use_cache=False
        )
        squares += float((answered[path] - alone.logits[0]).double().square().sum())
        total += float(alone.logits.double().square().sum())
    return float((squares / total) ** 0.5)


def _batch(rows: int) -> Batch:
    tokens_1T = torch.randint(rows // 8, rows // 2, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    positions_T, ends_T = torch.zeros(LENGTH, dtype=torch.int64), torch.arange(1, LENGTH + 1)
    for path in _paths():
        positions_T[path] = torch.arange(len(path))
        ends_T[path] = path[-1] + 1  # the last path that a token is on
    return replace(unscored_batch(tokens_1T, positions_T[None]), subtree_ends_BT=ends_T[None])


def _paths() -> Iterator[Tensor]:
    """Yields the places in the row of the tokens of each path."""
    for tree in TREES:
        path = torch.zeros(0, dtype=torch.int64)
        for start, end, depth in tree:
            path = torch.cat([path[:depth], torch.arange(start, end)])
            yield path
