"""The micro-batches of several trials as one batch, in which each trial's tokens have a place.

B rows, T tokens in a row, N scored positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from components.conversations.chat_formats.rendered import IGNORE_INDEX
from components.data.batch import Batch
from components.models.lean_lora import Place
from components.training.loss import scored_positions


@dataclass(frozen=True, slots=True, kw_only=True)
class JointBatch:
    """`batch.targets_2N` has the trials' scored positions one after the other, `counts` of each trial.

    `places` are those of the trials' own rows and columns, as many as each would have alone.
    """

    batch: Batch
    places: tuple[Place, ...]
    counts: tuple[int, ...]


def in_one_row(batches: Sequence[Batch]) -> JointBatch:
    """Lays all rows out one after the other: there is no padding but what each trial has alone.

    For attention that gets each conversation's length, or looks for restarts in a single row.
    """
    sizes = [batch.token_ids_BT.numel() for batch in batches]
    starts = [0, *itertools.accumulate(sizes)]
    targets = []
    for start, batch in zip(starts, batches, strict=False):
        rows_N, columns_N = scored_positions(batch)
        targets.append(
            torch.stack([torch.zeros_like(rows_N), start + rows_N * batch.token_ids_BT.shape[1] + columns_N])
        )
    whole = Batch(
        token_ids_BT=_in_a_row([batch.token_ids_BT for batch in batches]),
        labels_BT=_in_a_row([batch.labels_BT for batch in batches]),
        weights_BT=_in_a_row([batch.weights_BT for batch in batches]),
        position_ids_BT=_in_a_row([batch.position_ids_BT for batch in batches]),
        segment_ids_BT=_in_a_row([batch.segment_ids_BT for batch in batches]),
        targets_2N=torch.cat(targets, dim=1),
        lengths=tuple(length for batch in batches for length in batch.lengths),
    )
    places = tuple((slice(0, 1), slice(start, end)) for start, end in itertools.pairwise(starts))
    return JointBatch(batch=whole, places=places, counts=tuple(found.shape[1] for found in targets))


def row_by_row(batches: Sequence[Batch]) -> JointBatch:
    """Lays the trials' rows out below each other, padded to the longest of all trials."""
    longest = max(batch.token_ids_BT.shape[1] for batch in batches)
    starts = [0, *itertools.accumulate(len(batch.token_ids_BT) for batch in batches)]
    targets, places = [], []
    for (start, end), batch in zip(itertools.pairwise(starts), batches, strict=True):
        rows_N, columns_N = scored_positions(batch)
        targets.append(torch.stack([start + rows_N, columns_N]))
        places.append((slice(start, end), slice(0, batch.token_ids_BT.shape[1])))
    if any(batch.subtree_ends_BT is not None for batch in batches):
        batches = [_as_trees(batch) for batch in batches]
    padded = [_padded(batch, longest) for batch in batches]
    trees = [batch.subtree_ends_BT for batch in padded if batch.subtree_ends_BT is not None]
    whole = Batch(
        token_ids_BT=torch.cat([batch.token_ids_BT for batch in padded]),
        labels_BT=torch.cat([batch.labels_BT for batch in padded]),
        weights_BT=torch.cat([batch.weights_BT for batch in padded]),
        position_ids_BT=torch.cat([batch.position_ids_BT for batch in padded]),
        segment_ids_BT=torch.cat([batch.segment_ids_BT for batch in padded]),
        subtree_ends_BT=torch.cat(trees) if trees else None,
        has_restarts=any(batch.has_restarts for batch in batches),
        targets_2N=torch.cat(targets, dim=1),
    )
    return JointBatch(batch=whole, places=tuple(places), counts=tuple(found.shape[1] for found in targets))


def _in_a_row(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([part.reshape(1, -1) for part in parts], dim=1)


def _padded(batch: Batch, longest: int) -> Batch:
    """Padding's token ids are 0: what they are does not matter, since nothing sees them."""
    rows, tokens = batch.token_ids_BT.shape
    more = (0, longest - tokens)
    beyond = torch.arange(tokens, longest).expand(rows, -1)
    after_last = batch.position_ids_BT[:, -1:] + 1 + torch.arange(longest - tokens)
    trees = batch.subtree_ends_BT
    return replace(
        batch,
        token_ids_BT=F.pad(batch.token_ids_BT, more),
        labels_BT=F.pad(batch.labels_BT, more, value=IGNORE_INDEX),
        weights_BT=F.pad(batch.weights_BT, more),
        position_ids_BT=torch.cat([batch.position_ids_BT, after_last], dim=1),
        segment_ids_BT=F.pad(batch.segment_ids_BT, more),
        subtree_ends_BT=None if trees is None else torch.cat([trees, beyond + 1], dim=1),
    )


def _as_trees(batch: Batch) -> Batch:
    """Conversations that are paths, as trees without a fork: each token is seen up to the end of its conversation."""
    if batch.subtree_ends_BT is not None:
        return batch
    rows, tokens = batch.token_ids_BT.shape
    lengths = torch.tensor(batch.lengths)
    ends = lengths.cumsum(0).repeat_interleave(lengths).view(rows, tokens)
    return replace(batch, subtree_ends_BT=ends - tokens * torch.arange(rows)[:, None])
