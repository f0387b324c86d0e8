"""Elastic trials: how many workers each gets while others wait, when room becomes free, and when nodes go.

A trial changes its number of workers only at a checkpoint: it leaves its slot and continues in another one. What it
trains does not change: `batch.rows_per_step` is over all workers, and the loss is divided by the targets of all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from components.cluster.capacity.cluster_capacity import Available
from components.experiment.spec import WorkersSpec

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 15.0


def num_workers_at_start(workers: WorkersSpec, available: Available, *, waiting: int, patient: bool) -> int:
    """Returns the number for a trial that waits for a slot, with `waiting` trials in all: a fair share of the room.

    Many narrow trials get more done than a few wide ones, whose workers exchange gradients at every step. While it is
    `patient` a trial waits for nodes that could start; then it begins with what is free, if that is enough.
    """
    share = (available.free + available.startable) // max(1, waiting)
    if not patient and available.free >= workers.min_workers:
        share = min(share, available.free)
    return max(workers.min_workers, min(share, workers.max_workers))


def num_workers_at_report(workers: WorkersSpec, has: int, available: Available, *, waiting: int) -> int:
    """Returns the number for a running trial: it takes free room for which no trial waits.

    It asks for no nodes: nodes that start are for trials that wait.
    """
    return has if waiting else max(has, min(workers.max_workers, has + available.free))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedTrial:
    """A trial that waits for a slot with `num_workers` workers."""

    trial_id: str
    workers: WorkersSpec
    num_workers: int


@dataclass(slots=True)
class _Memory:
    """What earlier looks at a waiting trial have shown."""

    wanted: int | None = None  # the number of workers at the last look
    could_start: float | None = None  # since when there has been room for its fewest workers


class ElasticPolicy:
    """Decides on numbers of workers, and remembers how long trials have waited.

    Args:
        available: what the cluster has for workers of one kind at this moment.
        clock: monotonic seconds.
    """

    def __init__(
        self, available: Callable[[WorkersSpec], Available], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._available, self._clock = available, clock
        self._waiting: dict[str, _Memory] = {}
        self._next_look = 0.0

    def at_start(self, workers: WorkersSpec, *, waiting: int) -> int:
        """For a new trial."""
        return num_workers_at_start(workers, self._available(workers), waiting=waiting, patient=True)

    def at_report(self, workers: WorkersSpec, has: int, *, waiting: int) -> int:
        """For a trial that runs with `has` workers."""
        return num_workers_at_report(workers, has, self._available(workers), waiting=waiting)

    def is_due(self) -> bool:
        """Whether it is time for `changes` again: true once every LOOK_SECONDS."""
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + LOOK_SECONDS
        return True

    def changes(self, queued: Iterable[QueuedTrial], *, waiting: int) -> Iterator[tuple[str, int]]:
        """Yields (trial id, number of workers) for each trial that must be queued again with another number.

        The head's knowledge of free resources lags behind the placements it makes, so a number counts once two looks in a
        row have given it.
        """
        trials = list(queued)
        self._waiting = {trial.trial_id: self._waiting.get(trial.trial_id, _Memory()) for trial in trials}
        for trial in trials:
            memory = self._waiting[trial.trial_id]
            number = self._for_waiting(memory, trial.workers, waiting)
            if number != trial.num_workers and number == memory.wanted:
                yield trial.trial_id, number
            memory.wanted = number

    def _for_waiting(self, memory: _Memory, workers: WorkersSpec, waiting: int) -> int:
        available, now = self._available(workers), self._clock()
        if available.free < workers.min_workers:
            memory.could_start = None
        elif memory.could_start is None:
            memory.could_start = now
        patient = memory.could_start is None or now - memory.could_start < PATIENCE_SECONDS
        return num_workers_at_start(workers, available, waiting=waiting, patient=patient)
