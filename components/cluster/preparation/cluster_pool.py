"""Prepares large data on a cluster: Ray Data streams shards of it through tasks on all nodes, in order.

A row of the dataset is only a shard's key. Tasks read their chunks from the storage and keep their results there, so neither
the driver nor Ray's object store holds more than some shards, files need not be on a node's disk, and a preparation that was
killed goes on with the shards that are missing.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from types import TracebackType
from typing import Any, Self

import ray
import ray.data
from ray.exceptions import RayError

from components.cluster.capacity.autoscaler_config import capacity_of_cluster
from components.cluster.capacity.cluster_capacity import InsufficientCapacityError
from components.cluster.preparation.shards import MADE, ShardStore, shards_of
from components.cluster.private_session import own_secret
from components.cluster.ray_session import connected
from components.data import process_pool
from components.data.prepare import OpenCluster
from components.data.process_pool import C, R, StartPool, begin_process, until_enough
from components.errors import InputError, PreparationError, message_of
from components.experiment.spec import WorkersSpec
from components.records.on_message import OnMessage, ignore_message
from components.storage.folder import Folder, Lock, UnreadableLockError

BLOCK_BYTES = 1 << 20  # a row is a key: without this, Ray Data makes room for 128 MB a task and starts fewer of them
LOCK, LOOK_SECONDS = "lock", 2.0
ONE_CPU = WorkersSpec(workers=1, cpus_per_worker=1)


def on_cluster(on_message: OnMessage = ignore_message) -> OpenCluster:
    """For `prepare`. Ray is connected when there is something to do, and no longer once it is done."""

    def open_cluster(folder: Folder) -> StartPool:
        return lambda start: ClusterPool(ShardStore(folder, own_secret()), start, on_message)

    return open_cluster


class ClusterPool:
    """A WorkPool; each process calls `start` before its first work.

    A context: one driver at a time is in it, and others wait. What the cluster has made stays for the next attempt, unless
    none needs it: the work is done, or the data cannot be used.
    """

    def __init__(self, store: ShardStore, start: Callable[[], None], on_message: OnMessage = ignore_message) -> None:
        self.store, self._start, self._on_message = store, start, on_message
        self._session = ExitStack()
        self._lock: Lock | None = None
        self._shared_start: str | None = None

    def __enter__(self) -> Self:
        waits = False
        while self._lock is None:
            try:
                self._lock = self.store.folder.lock(LOCK)
            except UnreadableLockError:
                raise
            except BlockingIOError:
                if not waits:
                    self._on_message(f"data: another driver prepares it in {self.store.folder}; waiting for its end")
                waits = True
                time.sleep(LOOK_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._session.close()
            if kind is None or issubclass(kind, InputError):
                self.store.folder.delete()
        finally:
            if self._lock is not None:
                self._lock.close()

    def map(self, work: Callable[[C], R], chunks: Iterable[C], *, here: Callable[[C], R] | None = None) -> Iterator[R]:
        """As WorkPool.map. Raises PreparationError if the cluster does not do the work, as when it ends."""
        chunks = iter(chunks)
        first = until_enough(chunks)
        if sum(map(len, first)) < process_pool.FEWER_IN_PROCESS:
            yield from map(here or work, first)
            return
        keys, missing = self._give(work, itertools.chain(first, chunks))
        with closing(self._made(work, missing, len(keys))) as made:
            waiting = set(missing)
            for key in keys:
                place = next(made) if key in waiting else MADE
                results, error = self.store.results(key, place)
                yield from results
                if error is not None:
                    raise error

    def _give(self, work: Callable[[C], R], chunks: Iterable[C]) -> tuple[list[str], list[str]]:
        """Returns the keys of all shards, and of those that are not there from an earlier attempt: these can now be made."""
        keys, missing, made = [], [], self.store.made()
        for shard in shards_of(work, chunks):
            keys.append(shard.key)
            if shard.key not in made or not self.store.is_whole(shard.key):
                self.store.give(shard)
                missing.append(shard.key)
        return keys, missing

    def _made(self, work: Callable[[C], R], keys: Sequence[str], of: int) -> Generator[str, None, None]:
        """Yields where the results of each shard are, as soon as it and those before it are made."""
        if not keys:
            return
        started = self._begin(len(keys), of)
        rows = _in_order(keys, partial(_make, self.store, started, work))
        try:
            for row in rows:
                if row["away"]:
                    raise self._refusal(row["away"])
                yield row["place"]
        except RayError as error:
            raise self._refusal(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from None

    def _refusal(self, reason: str) -> PreparationError:
        return PreparationError(
            f"{self.store.folder}: the cluster did not prepare the data ({reason}). The same command goes on with the shards"
            " that are missing; data.on_cluster_from=null prepares it on this machine"
        )

    def _begin(self, missing: int, of: int) -> str:
        """Connects to Ray once, and returns the name of what each process calls first."""
        if self._shared_start is None:
            self._session.enter_context(connected())
            cpus = capacity_of_cluster().workers_that_fit(ONE_CPU)
            if cpus == 0:
                raise InsufficientCapacityError(
                    "data.on_cluster_from: no node of the cluster has a CPU to prepare data with; set it to null, and"
                    " processes of this machine prepare it"
                )
            self._shared_start = self.store.share(self._start)
            self._on_message(f"data: prepared on the cluster, {missing} of {of} shards to read, {cpus} CPUs at most")
        return self._shared_start


def _in_order(keys: Sequence[str], make: Callable[[dict[str, Any]], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    context = ray.data.DataContext.get_current().copy()
    context.execution_options.preserve_order = True
    context.target_max_block_size = BLOCK_BYTES
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    with ray.data.DataContext.current(context):
        given = ray.data.from_items([{"key": key} for key in keys], override_num_blocks=len(keys))
        rows = given.map(make, num_cpus=1)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):  # else Ray's file
            handler.setLevel(logging.ERROR)  # it would say on the terminal how long it took
    yield from rows.iter_rows()


_BEGUN: dict[str, None] = {}  # what this process has called


def _make(store: ShardStore, start: str, work: Callable[[Any], Any], row: dict[str, Any]) -> dict[str, str]:
    """In a task. What the work raises is a result, which the driver raises in its turn; `away` says why the storage was."""
    key = str(row["key"])
    try:
        if start not in _BEGUN:
            _BEGUN.clear()
            begin_process(store.shared(start))
            _BEGUN[start] = None
        chunks = list(store.given(key))
        return {"place": store.keep(key, *_worked(work, chunks)), "away": ""}
    except OSError as error:
        return {"place": "", "away": message_of(error)}


def _worked(work: Callable[[Any], Any], chunks: Iterable[Any]) -> tuple[list[Any], Exception | None]:
    results: list[Any] = []
    try:
        for chunk in chunks:
            results.append(work(chunk))
    except Exception as error:  # noqa: BLE001 - as from a process of this machine
        return results, error
    return results, None
