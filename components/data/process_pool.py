"""Processes that do the work of preparing data: they start when there is enough of it, and stay until all is done."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager
from multiprocessing import get_context
from types import TracebackType
from typing import Protocol, Self, TypeVar

FEWER_IN_PROCESS = 500  # with fewer records, starting processes costs more than it saves
AHEAD = 3  # chunks for each process: one that is worked on, one that is next, one whose result is read


C = TypeVar("C", bound=Sized)  # so many records, for a process
R = TypeVar("R")


class WorkPool(Protocol):
    """What does the work of preparing data, in this process or elsewhere."""

    def map(self, work: Callable[[C], R], chunks: Iterable[C], *, here: Callable[[C], R] | None = None) -> Iterator[R]:
        """Yields what `work` makes of each chunk, in order.

        Args:
            work: goes to the processes; a function of a module, or a partial of one.
            here: the same in this process, which does it if there are few records; by default `work`.
        """
        ...


StartPool = Callable[[Callable[[], None]], AbstractContextManager[WorkPool]]  # given what each process calls first


class ProcessPool:
    """A WorkPool of this machine: a context with `processes` processes, by default one per core; each calls `start` first."""

    def __init__(self, processes: int | None = None, *, start: Callable[[], None] | None = None) -> None:
        self.processes = processes or os.cpu_count() or 1
        self._start = start
        self._pool: Executor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, work: Callable[[C], R], chunks: Iterable[C], *, here: Callable[[C], R] | None = None) -> Iterator[R]:
        """As WorkPool.map."""
        chunks = iter(chunks)
        first: list[C] = []
        if self._pool is None:
            first = until_enough(chunks)
            if self.processes == 1 or sum(map(len, first)) < FEWER_IN_PROCESS:
                yield from map(here or work, itertools.chain(first, chunks))
                return
            context = get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.processes, context, initializer=begin_process, initargs=(self._start,)
            )
        yield from self._in_order(self._pool, work, itertools.chain(first, chunks))

    def _in_order(self, pool: Executor, work: Callable[[C], R], chunks: Iterator[C]) -> Iterator[R]:
        """Works as far ahead as keeps every process busy, and no further: what waits for its reader is held in memory."""
        started = (pool.submit(work, chunk) for chunk in chunks)
        waiting = deque(itertools.islice(started, AHEAD * self.processes))
        try:
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(itertools.islice(started, 1))
                yield done
        finally:  # who stops reading waits only for what is being worked on
            for each in waiting:
                each.cancel()


def on_this_machine(start: Callable[[], None], processes: int | None = None) -> ProcessPool:
    """A StartPool."""
    return ProcessPool(processes, start=start)


def until_enough(chunks: Iterator[C]) -> list[C]:
    """Returns the first chunks, up to FEWER_IN_PROCESS records."""
    first: list[C] = []
    records = 0
    while records < FEWER_IN_PROCESS and (chunk := next(chunks, None)) is not None:
        first.append(chunk)
        records += len(chunk)
    return first


def begin_process(start: Callable[[], None] | None) -> None:
    """In a process of a pool, before its first work."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the other cores have processes of their own
    if start is not None:
        start()
