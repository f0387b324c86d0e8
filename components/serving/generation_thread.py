"""One thread a base model: it makes the replies of all models that share the base, a batch each, in turns.

Requests come from other threads (`submit`), and hear of their tokens by the functions of their rows, in this one.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import nn

from components.models.base_in_memory import BaseInMemory
from components.models.load_trained import LoadedModel
from components.models.shared_base import rotates_by_length
from components.scoring.running_batch import ALONE, BatchAbilities, Row, RunningBatch
from components.serving.limits import Limits

log = logging.getLogger(__name__)
TOKENS_A_TURN = 16  # of a batch, while another model's requests wait


class BusyError(Exception):
    """As many replies wait as may wait."""


class GoneError(Exception):
    """Another model has taken this one's place; ask again."""


@dataclass(eq=False)
class Waiting:
    """A row that waits for its place, or has it. `cancelled` ends it with its next token."""

    row: Row
    fail: Callable[[Exception], None]
    cancelled: bool = False


@dataclass(eq=False)
class _Queue:
    """One model's batch, and what waits for it."""

    loaded: LoadedModel
    batch: RunningBatch
    waiting: deque[Waiting] = field(default_factory=deque)
    at_work: list[Waiting] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.at_work)

    def drop_cancelled(self) -> None:
        """Forgets those that nobody waits for any more."""
        self.waiting = deque(request for request in self.waiting if not request.cancelled)


class GenerationThread:
    """Begins with its first model. `close` ends it."""

    def __init__(self, base: BaseInMemory, limits: Limits) -> None:
        self.base, self.limits = base, limits
        self._queues: dict[nn.Module, _Queue] = {}
        self._changed = threading.Condition()
        self._wanted = 0  # who waits for `pausing`
        self._model = threading.Lock()  # who uses the base
        self._closed = False
        self._last: _Queue | None = None
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def add_model(self, loaded: LoadedModel) -> None:
        """Tries what the model's batches can do. Raises what a model raises that cannot read a token."""
        with self.pausing(), self.base.in_use(loaded.model):
            alone = rotates_by_length(loaded.model.config)  # a longer row beside it would change what a row says
            batch = RunningBatch(loaded, ALONE if alone else BatchAbilities.of(loaded))
        with self._changed:
            self._queues[loaded.model] = _Queue(loaded, batch)
            if not self._thread.is_alive():
                self._thread.start()

    def remove_model(self, loaded: LoadedModel) -> None:
        """Forgets a model once its requests have ended. New ones must not come."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._queues[loaded.model].has_work)
            queue = self._queues.pop(loaded.model)
            self._last = None if self._last is queue else self._last  # it holds the model
        with self.pausing():
            self.base.forget(loaded.model)

    @property
    def models(self) -> int:
        return len(self._queues)

    @contextlib.contextmanager
    def pausing(self) -> Iterator[None]:
        """Inside, nothing is generated, and the base may be changed."""
        with self._changed:
            self._wanted += 1
        with self._model:
            with self._changed:
                self._wanted -= 1
                self._changed.notify_all()
            yield

    def submit(self, loaded: LoadedModel, requests: Sequence[Waiting]) -> None:
        """Raises BusyError if too many wait, GoneError if the model was removed."""
        with self._changed:
            if loaded.model not in self._queues or self._closed:
                raise GoneError
            for queue in self._queues.values():
                queue.drop_cancelled()
            if self.waiting + len(requests) > self.limits.waiting:
                raise BusyError
            self._queues[loaded.model].waiting.extend(requests)
            self._changed.notify_all()

    @property
    def waiting(self) -> int:
        return sum(len(queue.waiting) for queue in list(self._queues.values()))

    @property
    def at_work(self) -> int:
        return sum(len(queue.at_work) for queue in list(self._queues.values()))

    def close(self) -> None:
        """Ends the thread after its next token; what is unfinished fails."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        for queue in self._queues.values():
            for request in (*queue.at_work, *queue.waiting):
                request.fail(ConnectionError("the server ends"))

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.notify_all()  # remove_model waits for the end of work
                self._changed.wait_for(lambda: self._closed or (not self._wanted and self._next() is not None))
                queue = self._last = self._next()
            if self._closed or queue is None:
                return
            with self._model, self.base.in_use(queue.loaded.model):
                self._work(queue)

    def _next(self) -> _Queue | None:
        """Returns the first after the last one that has work; they take turns."""
        queues = list(self._queues.values())
        begin = queues.index(self._last) + 1 if self._last in queues else 0
        return next((queue for queue in queues[begin:] + queues[:begin] if queue.has_work), None)

    def _work(self, queue: _Queue) -> None:
        """Lets those in that find a place, then makes tokens until something changes."""
        admitted = self._admitted(queue)
        tokens = 0

        def interrupted() -> bool:
            nonlocal tokens
            tokens += 1
            others = tokens >= TOKENS_A_TURN and any(other.has_work for other in self._others(queue))
            return self._closed or bool(self._wanted) or others or self._may_enter(queue)

        try:
            if admitted:
                queue.batch.add([request.row for request in admitted])
        except Exception as error:  # a prompt that cannot be read ends no other reply
            log.exception("prompts could not be read")
            self._end(queue, admitted, error)
        try:
            queue.batch.go_on(interrupted)
        except Exception as error:  # the next requests find an empty batch
            log.exception("a batch ended")
            queue.batch.drop()
            self._end(queue, queue.at_work, error)
        self._end(queue, [request for request in queue.at_work if request.row.ended])

    def _end(self, queue: _Queue, ended: Sequence[Waiting], error: Exception | None = None) -> None:
        for request in ended:
            if (reason := error or request.row.error) is not None:
                request.fail(reason)
        gone = set(map(id, ended))
        queue.at_work = [request for request in queue.at_work if id(request) not in gone]

    def _others(self, queue: _Queue) -> list[_Queue]:
        return [other for other in list(self._queues.values()) if other is not queue]

    def _admitted(self, queue: _Queue) -> list[Waiting]:
        """Takes from the queue those that find a place now, in order. They are at work from here on."""
        admitted: list[Waiting] = []
        with self._changed:
            queue.drop_cancelled()
            while queue.waiting and self._fits(queue, admitted):
                admitted.append(queue.waiting.popleft())
            queue.at_work += admitted
        return admitted

    def _may_enter(self, queue: _Queue) -> bool:
        with self._changed:  # who submits also drops those that have left
            return bool(queue.waiting) and self._fits(queue, [])

    def _fits(self, queue: _Queue, admitted: Sequence[Waiting]) -> bool:
        """Whether the first that waits finds a place beside the rows at work and those admitted just now."""
        batch, company = queue.batch, queue.batch.abilities.company
        rows = [*(request.row for request in admitted), queue.waiting[0].row]
        if not batch.takes_rows or len(batch.rows) + len(rows) > self.limits.rows:
            return False
        alike = company == "any" or (company == "equally long" and len({len(row.prompt) for row in rows}) == 1)
        if len(rows) > 1 and not alike:
            return False
        return batch.fits(rows, self.limits.batch_tokens) or len(batch.rows) + len(rows) == 1
