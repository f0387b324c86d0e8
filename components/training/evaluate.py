"""Exact loss over a split, conversation by conversation, distributed over the workers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from components.data.batch import Batch
from components.data.collate import collate
from components.data.rows import RowStore
from components.data.token_store import TokenStore
from components.models.load_trained import LoadedModel
from components.models.token_id_check import rows_of
from components.records.evaluation_record import ConversationScores
from components.records.loss_views import LossViews
from components.training.loss import ScoredModel
from components.training.model_abilities import laid_out
from components.training.turn_totals import TurnTotals
from components.training.vocabulary_check import in_store
from components.training.workers import OneWorker, Workers


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationLoss:
    """The loss of the conversation at `index` of a split. `loss_sum` is in weighted nats over its `num_targets` targets."""

    index: int
    loss_sum: float
    num_targets: int


def conversation_losses(
    scored: ScoredModel,
    store: RowStore,
    workers: Workers,
    *,
    max_tokens: int,
    rows_per_batch: int,
    pad_token_id: int,
    turns: TurnTotals | None = None,
    rows: Sequence[int] | None = None,
    after_batch: Callable[[], None] | None = None,
) -> list[ConversationLoss]:
    """Returns this worker's share of the split. Over all workers every row of the store occurs exactly once.

    The losses of separate rows of a conversation are added up, as far as they are this worker's.

    Rows are not packed, so the losses are exact for every causal model. A batch holds as many conversations of similar
    length as fit into rows_per_batch x max_tokens tokens, padding included.

    Args:
        turns: takes what else the same pass says of each target; the losses stay the same, to the last bit.
        rows: of the store, where not all are wanted.
    """
    wanted = range(len(store)) if rows is None else rows
    by_length = sorted(wanted, key=lambda index: -int(store.lengths[index]))
    max_batch_tokens = rows_per_batch * max_tokens
    shares = [
        list(batches_by_length(store.lengths, by_length[rank :: workers.count], max_batch_tokens))
        for rank in range(workers.count)
    ]
    mine = shares[workers.worker_rank]
    # No worker of a sharded model can compute alone: a worker with fewer batches adds empty ones.
    mine += [[]] * (max(map(len, shares)) - len(mine))
    was_training = scored.training
    scored.eval()
    sums: dict[int, tuple[float, int]] = {}
    try:
        with torch.no_grad(), scored.evaluating():
            for packed in mine:
                batch = collate(store, packed, pad_token_id, max_tokens).to(workers.device)
                _add_batch_losses(sums, scored, store, packed, batch, turns)
                if after_batch is not None:
                    after_batch()
    finally:
        scored.train(was_training)  # other trials may go on with the same layers
    return [
        ConversationLoss(index=index, loss_sum=loss_sum, num_targets=num_targets)
        for index, (loss_sum, num_targets) in sums.items()
    ]


def evaluate(
    scored: ScoredModel, store: RowStore, workers: Workers, *, max_tokens: int, rows_per_batch: int, pad_token_id: int
) -> tuple[float, int]:
    """Returns (nats per target, number of targets) over the whole split and all workers."""
    everything = all_losses(
        scored, store, workers, max_tokens=max_tokens, rows_per_batch=rows_per_batch, pad_token_id=pad_token_id
    )
    return everything.value, int(sum(everything.weights))


def all_losses(
    scored: ScoredModel,
    store: RowStore,
    workers: Workers,
    *,
    max_tokens: int,
    rows_per_batch: int,
    pad_token_id: int,
    rows: Sequence[int] | None = None,
    after_batch: Callable[[], None] | None = None,
) -> ConversationScores:
    """Returns the loss of every conversation of the split, on every worker.

    `rows`: of the store, where not all are wanted; the weight of a conversation without rows among them is 0.
    """
    mine = conversation_losses(
        scored,
        store,
        workers,
        max_tokens=max_tokens,
        rows_per_batch=rows_per_batch,
        pad_token_id=pad_token_id,
        rows=rows,
        after_batch=after_batch,
    )
    count = store.conversation_of(len(store) - 1) + 1
    sums, weights = [0.0] * count, [0.0] * count
    for loss in mine:
        sums[loss.index], weights[loss.index] = loss.loss_sum, float(loss.num_targets)
    (everything,) = over_workers([ConversationScores(sums=tuple(sums), weights=tuple(weights))], workers)
    return everything


def over_workers(shares: Sequence[ConversationScores], workers: Workers) -> list[ConversationScores]:
    """Adds up the workers' shares, each of which has a place for every conversation. All workers call it."""
    totals = iter(workers.sum([number for share in shares for number in (*share.sums, *share.weights)]))
    return [
        ConversationScores(
            sums=tuple(itertools.islice(totals, len(share.sums))),
            weights=tuple(itertools.islice(totals, len(share.weights))),
        )
        for share in shares
    ]


def score(loaded: LoadedModel, store: TokenStore, *, max_tokens: int, rows_per_batch: int) -> list[ConversationLoss]:
    """Returns the loss of every conversation, in order, at the precision that the model was trained with.

    Raises ValueError for a token without a row in the model's embeddings.
    """
    return _score(loaded, store, max_tokens=max_tokens, rows_per_batch=rows_per_batch, turns=None)


def score_with_views(
    loaded: LoadedModel, store: TokenStore, *, max_tokens: int, rows_per_batch: int
) -> tuple[list[ConversationLoss], LossViews | None]:
    """As `score`, with the loss seen from several sides, from the same pass.

    The views are None for a store of an earlier version, or one without the text of its conversations.
    """
    turns = TurnTotals.of(store, loaded.chat_format.stop_token_ids)
    losses = _score(loaded, store, max_tokens=max_tokens, rows_per_batch=rows_per_batch, turns=turns)
    return losses, None if turns is None else turns.views()


def _score(
    loaded: LoadedModel, store: TokenStore, *, max_tokens: int, rows_per_batch: int, turns: TurnTotals | None
) -> list[ConversationLoss]:
    loaded.check_token_ids(in_store(store, rows_of(loaded.model)))
    losses = conversation_losses(
        scored_model(loaded),
        laid_out(store, loaded.model, loaded.attention, longest=max_tokens),
        OneWorker(loaded.device),
        max_tokens=max_tokens,
        rows_per_batch=rows_per_batch,
        pad_token_id=loaded.chat_format.pad_token_id,
        turns=turns,
    )
    return sorted(losses, key=lambda loss: loss.index)


def scored_model(loaded: LoadedModel) -> ScoredModel:
    return ScoredModel(loaded.model, precision=loaded.precision, attention=loaded.attention, device=loaded.device)


def batches_by_length(
    lengths: np.ndarray, longest_first: list[int], max_batch_tokens: int
) -> Iterator[list[tuple[int, ...]]]:
    """Yields batches of one-conversation rows, each of at most so many tokens, padding included."""
    start = 0
    while start < len(longest_first):
        rows = max(1, max_batch_tokens // int(lengths[longest_first[start]]))
        yield [(index,) for index in longest_first[start : start + rows]]
        start += rows


def _add_batch_losses(
    sums: dict[int, tuple[float, int]],
    scored: ScoredModel,
    store: RowStore,
    rows: list[tuple[int, ...]],
    batch: Batch,
    turns: TurnTotals | None,
) -> None:
    """Adds the loss of each row to (loss sum, number of targets) of its conversation. `batch` has these rows."""
    found = None
    if turns is None:
        losses_N, (rows_N, columns_N) = scored.losses(batch)
    else:
        found, (rows_N, columns_N) = scored.scores(batch, turns.stop_token_ids)
        losses_N = found.losses_N
    if not rows:
        return
    weighted_N = (losses_N * batch.weights_BT[rows_N, columns_N]).double().tolist()
    segments_N = batch.segment_ids_BT[rows_N, columns_N].tolist()
    for row, segment, loss in zip(rows_N.tolist(), segments_N, weighted_N, strict=True):
        index = store.conversation_of(rows[row][segment - 1])
        loss_sum, num_targets = sums.get(index, (0.0, 0))
        sums[index] = loss_sum + loss, num_targets + 1
    if turns is not None and found is not None:
        # Position t predicts token t + 1. No rows are packed here, so a row is one of the store's.
        places = [(rows[row][0], column + 1) for row, column in zip(rows_N.tolist(), columns_N.tolist(), strict=True)]
        turns.add(store, places, weighted_N, found.right_N.tolist(), found.stop_N.double().tolist())
