"""A request while it is answered: until its replies are there, its time is over, or its client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request

from components.errors import message_of
from components.scoring.reply import Reply
from components.serving.chat_response import usage_of
from components.serving.limits import Limits
from components.serving.metrics import Metrics
from components.serving.pending_reply import PendingReply, ReplyPiece
from components.serving.request_error import RequestError
from components.serving.requested import Requested
from components.serving.served_models import ServedModel

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(eq=False)
class Answer:
    """One request at work."""

    served: ServedModel
    wanted: Requested
    pending: Sequence[PendingReply]
    request: Request
    replies: Sequence[Reply] = ()
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._gone = asyncio.ensure_future(_gone(self.request))

    @property
    def limits(self) -> Limits:
        return self.served.thread.limits

    def whole(self, replies: Sequence[Reply]) -> dict[str, Any]:
        self.replies = replies
        choices = [
            self.wanted.choice(pending.index, reply, pending.chances)
            for pending, reply in zip(self.pending, replies, strict=True)
        ]
        return self.wanted.head.whole(choices, usage_of(replies, self.wanted.prompt_lengths))

    async def within(self, work: Awaitable[T]) -> T:
        """Returns what `work` returns. Raises RequestError if that fails, takes too long, or nobody waits any more."""
        task = asyncio.ensure_future(work)
        left = max(0.0, self.began + self.limits.request_seconds - time.monotonic())
        try:
            await asyncio.wait({task, self._gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        except ConnectionError as error:
            raise RequestError(503, message_of(error), kind="server_error") from None
        except Exception as error:
            log.exception("a reply failed")
            raise RequestError(500, f"the model failed: {message_of(error)}", kind="server_error") from None
        finally:
            task.cancel()
            await asyncio.wait({task})  # what it waits in may be closed only once it waits no more
        if self._gone.done():
            raise RequestError(499, "the client has gone")
        raise RequestError(504, f"not answered within {self.limits.request_seconds:g} seconds", kind="timeout_error")

    @contextlib.contextmanager
    def counted(self, metrics: Metrics) -> Iterator[None]:
        """Inside, the request is at work; afterwards it is over, whatever happened, and in the metrics."""
        status = 499  # who leaves a stream leaves it without an error
        try:
            yield
            status = 200
        except RequestError as error:
            status, error.is_counted = error.status, True
            raise
        finally:
            for pending in self.pending:
                pending.cancel()
            self._gone.cancel()
            self._count(metrics, status)

    def _count(self, metrics: Metrics, status: int) -> None:
        name = self.served.id
        metrics.requests.labels(name, str(status)).inc()
        metrics.request_seconds.labels(name).observe(time.monotonic() - self.began)
        metrics.prompt_tokens.labels(name).inc(sum(self.wanted.prompt_lengths))
        metrics.reply_tokens.labels(name).inc(sum(pending.request.row.made for pending in self.pending))
        firsts = [pending.first_token_at for pending in self.pending if pending.first_token_at is not None]
        if firsts:
            metrics.first_token.labels(name).observe(min(firsts) - self.began)


async def whole_replies(pending: Sequence[PendingReply]) -> list[Reply]:
    return list(await asyncio.gather(*(each.whole() for each in pending)))


async def merged(pending: Sequence[PendingReply]) -> AsyncGenerator[tuple[PendingReply, ReplyPiece | Reply], None]:
    """Yields what comes of several replies, in the order in which it comes. Raises the first error."""
    found: asyncio.Queue[tuple[PendingReply, ReplyPiece | Reply | Exception]] = asyncio.Queue()

    async def collect(each: PendingReply) -> None:
        try:
            async for part in each.pieces():
                found.put_nowait((each, part))
        except Exception as error:  # noqa: BLE001 - raised where the parts are read
            found.put_nowait((each, error))

    tasks = [asyncio.create_task(collect(each)) for each in pending]
    try:
        while True:
            each, part = await found.get()
            if isinstance(part, Exception):
                raise part
            yield each, part
    finally:
        for task in tasks:
            task.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
