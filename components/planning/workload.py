"""The work of a trial, computed from its prepared data: the largest batches, and all tokens that are computed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from components.data.collate import MULTIPLE
from components.data.rows import RowStore
from components.data.sampler import PackedRow, StepSampler, micro_batches
from components.experiment.report_marks import evaluation_marks, rungs_alone
from components.experiment.spec import AshaSpec, HyperbandSpec, Scheduler, TrialSpec
from components.planning.dry_run import MicroBatch
from components.training.evaluate import batches_by_length


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A whole trial, over all its workers. Tokens are those that are computed, padding counted.

    batch, evaluated: the largest of training and of an evaluation. largest_step: the step of the first epoch that has
    the former; tokens_in_step: the tokens of that step, over all workers.
    """

    batch: MicroBatch
    evaluated: MicroBatch
    largest_step: int
    tokens_in_step: int
    target_tokens: int
    trained_tokens: int
    evaluated_tokens: int


def workload(
    train: RowStore,
    held_out: RowStore,
    spec: TrialSpec,
    *,
    max_tokens: int,
    workers: int,
    rungs: tuple[int, ...] = (),
    sample: Sequence[int] | None = None,
) -> Workload:
    """`rungs`: where a trial is evaluated beside its regular evaluations, in target tokens; only on the rows of a `sample`.

    Computed from the first epoch: every epoch has the same conversations, in another order."""
    sampler = StepSampler(train.lengths, spec.batch, max_tokens=max_tokens, seed=spec.seed)
    budget = spec.budget.in_target_tokens(train.total_targets)
    per_worker = [list(_shares(rows, spec, workers)) for rows in sampler.plan(0)]
    sized = [[_size(train, rows) for rows in shares] for shares in per_worker]
    largest = max(range(len(sized)), key=lambda step: max(batch.rows * batch.tokens for batch in sized[step]))
    everything = [batch for step in sized for batch in step]
    biggest = max(sized[largest], key=lambda batch: batch.rows * batch.tokens)
    most_tokens = spec.batch.rows_per_micro_batch * max_tokens
    evaluations = list(_evaluations(held_out, range(len(held_out)), most_tokens))
    sampled = evaluations if sample is None else list(_evaluations(held_out, sample, most_tokens))
    at_rungs = len(rungs_alone(budget, spec.budget.evaluations, rungs))
    return Workload(
        batch=MicroBatch(
            rows=biggest.rows,
            tokens=biggest.tokens,
            targets=max(batch.targets for batch in everything),
            trees=any(batch.trees for batch in everything),
            packed=any(batch.packed for batch in everything),
            longest=max(batch.longest for batch in everything),
            accumulates=max(len(step) for step in sized) > workers,
        ),
        evaluated=max(evaluations, key=lambda batch: batch.rows * batch.tokens),
        largest_step=largest,
        tokens_in_step=sum(batch.rows * batch.tokens for batch in sized[largest]),
        target_tokens=budget,
        trained_tokens=round(sum(b.rows * b.tokens for b in everything) * budget / train.total_targets),
        evaluated_tokens=sum(b.rows * b.tokens for b in evaluations)
        * len(evaluation_marks(budget, spec.budget.evaluations))
        + sum(b.rows * b.tokens for b in sampled) * at_rungs,
    )


def trials_worth(scheduler: Scheduler, target_tokens: int, trials: int, rungs: tuple[int, ...]) -> tuple[float, float]:
    """The work of a branch in whole trials: if each rung passes one trial in reduction_factor, and if it passes all.

    The best of a bracket passes every rung: in a bracket of its own a branch keeps at least one trial, in a shared one its
    share of what passes need not be a whole trial. Which of the two is nearer depends on the losses: if each trial is
    better than those that started before it, all pass. What median stopping saves depends on the losses alone.
    """
    if not isinstance(scheduler, AshaSpec | HyperbandSpec):
        return float(trials), float(trials)
    skips = scheduler.skips([""] * trials, len(rungs)) if isinstance(scheduler, HyperbandSpec) else (0,) * trials
    low = sum(_worth(scheduler, target_tokens, skips.count(skip), rungs[skip:]) for skip in sorted(set(skips)))
    return low, float(trials)


def _worth(scheduler: AshaSpec | HyperbandSpec, target_tokens: int, trials: int, rungs: tuple[int, ...]) -> float:
    worth, running, spent = 0.0, float(trials), 0.0
    for rung in rungs:
        worth += running * (rung / target_tokens - spent)
        passing = running / scheduler.reduction_factor
        running, spent = math.ceil(passing) if scheduler.brackets == "per_branch" else passing, rung / target_tokens
    return worth + running * (1.0 - spent)


def _shares(rows: list[PackedRow], spec: TrialSpec, workers: int) -> Iterator[list[PackedRow]]:
    for rank in range(workers):
        yield from micro_batches(
            rows, worker_rank=rank, worker_count=workers, rows_per_micro_batch=spec.batch.rows_per_micro_batch
        )


def _size(store: RowStore, rows: Sequence[PackedRow]) -> MicroBatch:
    """The micro-batch that collate makes of these rows."""
    longest = max((sum(int(store.lengths[index]) for index in row) for row in rows), default=1)
    return MicroBatch(
        rows=max(1, len(rows)),
        tokens=max(MULTIPLE, -(-longest // MULTIPLE) * MULTIPLE),
        trees=any(store.forks(index) for row in rows for index in row),
        packed=any(len(row) > 1 for row in rows),
        longest=max((int(store.lengths[index]) for row in rows for index in row), default=1),
        targets=max(1, sum(int(store.num_targets[index]) for row in rows for index in row)),
    )


def _evaluations(store: RowStore, wanted: Sequence[int], most_tokens: int) -> Iterator[MicroBatch]:
    longest_first = sorted(wanted, key=lambda index: -int(store.lengths[index]))
    for rows in batches_by_length(store.lengths, longest_first, most_tokens):
        yield _size(store, rows)
