"""Samples the rows of each optimizer step: a pure function of (lengths, seed, epoch), equal in all processes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from components.data.packing import WINDOW, pack_rows
from components.experiment.spec import BatchSpec

PackedRow = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The position of the next step. Part of a checkpoint."""

    epoch: int
    step: int


class StepSampler:
    """An endless sequence of steps. Every epoch has each conversation exactly once; its last step may be smaller."""

    def __init__(self, lengths: np.ndarray, batch: BatchSpec, *, max_tokens: int, seed: int) -> None:
        if len(lengths) == 0:
            raise ValueError("there are no conversations to sample from")
        self.lengths, self.batch, self.max_tokens, self.seed = lengths, batch, max_tokens, seed
        self._planned: tuple[int, list[list[PackedRow]]] | None = None

    def next_step(self, position: Position) -> tuple[list[PackedRow], Position]:
        """Returns the rows of the step at `position` (tuples of conversation indices), and the next position."""
        steps = self.plan(position.epoch)
        after = Position(epoch=position.epoch, step=position.step + 1)
        if after.step == len(steps):
            after = Position(epoch=position.epoch + 1, step=0)
        return steps[position.step], after

    def plan(self, epoch: int) -> list[list[PackedRow]]:
        """Returns all steps of an epoch."""
        if self._planned is None or self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        return self._planned[1]

    def _plan(self, epoch: int) -> list[list[PackedRow]]:
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(len(self.lengths)).tolist()
        per_step = self.batch.rows_per_step
        if self.batch.packing:
            rows = pack_rows(self.lengths, order, self.max_tokens)
            # Packing puts long conversations side by side; rows are shuffled again, so that a step is a fair sample.
            rows = [rows[position] for position in generator.permutation(len(rows))]
        else:
            rows = self._bucket_by_length(order)
        steps = [rows[start : start + per_step] for start in range(0, len(rows), per_step)]
        if self.batch.packing:
            return steps
        return [steps[position] for position in generator.permutation(len(steps))]

    def _bucket_by_length(self, order: list[int]) -> list[PackedRow]:
        """Returns one conversation per row; neighbors have similar lengths, so a step has little padding."""
        rows: list[PackedRow] = []
        for start in range(0, len(order), WINDOW):
            window = order[start : start + WINDOW]
            rows.extend((index,) for index in sorted(window, key=lambda index: -int(self.lengths[index])))
        return rows


def micro_batches(
    rows: list[PackedRow], *, worker_rank: int, worker_count: int, rows_per_micro_batch: int
) -> list[list[PackedRow]]:
    """Returns a worker's share of a step. All workers get equally many micro-batches; the last may be empty.

    An empty one must still be computed (on padding): the other workers wait for this one in the backward pass.
    """
    most_rows = -(-len(rows) // worker_count)
    count = -(-most_rows // rows_per_micro_batch)
    mine = rows[worker_rank::worker_count]
    return [mine[number * rows_per_micro_batch : (number + 1) * rows_per_micro_batch] for number in range(count)]
