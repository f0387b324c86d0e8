"""The server as an ASGI application: OpenAI's API over models in memory, their health, metrics, and a chat page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp

from components.errors import InputError
from components.scoring.reply import Reply
from components.serving.answer import Answer, merged, whole_replies
from components.serving.chat_page import add_page
from components.serving.chat_request import ChatRequest, CompletionRequest, Sampling, parse_request
from components.serving.chat_response import LAST_EVENT, error_body, event, usage_of
from components.serving.generation_thread import BusyError, GenerationThread, GoneError
from components.serving.guard import IS_TRUSTED, Guard
from components.serving.metrics import CONTENT_TYPE, Metrics
from components.serving.request_error import RequestError
from components.serving.requested import Requested, requested_chat, requested_completion
from components.serving.served_models import ServedModel, ServedModels

log = logging.getLogger(__name__)
Parsed = TypeVar("Parsed", bound=Sampling)


def make_app(models: ServedModels, *, hosts: Iterable[str] | None, token: str | None, follow_seconds: float) -> ASGIApp:
    """Returns the application. `models` must be open; while it runs, it follows aliases every so many seconds."""
    limits = models.limits
    answers = Answers(models)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        following = asyncio.create_task(_follow(models, follow_seconds))
        try:
            yield
        finally:
            following.cancel()
            await run_in_threadpool(models.close)

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/v1/models")(answers.list_models)
    app.get("/v1/models/{name:path}")(answers.show_model)
    app.post("/v1/chat/completions")(answers.chat)
    app.post("/v1/completions")(answers.complete)
    app.get("/health")(answers.health)
    app.get("/metrics")(answers.show_metrics)
    add_page(app)
    app.exception_handler(RequestError)(answers.explain)
    app.exception_handler(404)(_not_found)
    app.exception_handler(405)(_not_found)
    return Guard(app, limits, hosts=hosts, token=token)


class Answers:
    """What the server answers, path by path."""

    def __init__(self, models: ServedModels) -> None:
        self.models = models
        self.metrics = Metrics(
            waiting=lambda: sum(thread.waiting for thread in self._threads()),
            at_work=lambda: sum(thread.at_work for thread in self._threads()),
        )

    def _threads(self) -> set[GenerationThread]:
        return {served.thread for served in self.models.models}

    async def list_models(self) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [_model_facts(served) for served in self.models.models]})

    async def show_model(self, name: str) -> JSONResponse:
        return JSONResponse(_model_facts(self._served(name)))

    async def health(self, request: Request) -> JSONResponse:
        problems = dict(self.models.problems)
        status = "degraded" if problems else "ok"
        if not request.scope[IS_TRUSTED]:
            return JSONResponse({"status": status})
        facts = [
            {
                "id": served.id,
                "source": served.source,
                "version": served.version,
                "digest_checked": served.digest_checked,
                "since": served.since,
                **({"problem": problems[served.id]} if served.id in problems else {}),
            }
            for served in self.models.models
        ]
        return JSONResponse({"status": status, "models": facts})

    async def show_metrics(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def chat(self, request: Request) -> Response:
        parsed = _parsed(await request.body(), ChatRequest)
        return await self._answer(
            request, parsed.model, bool(parsed.stream), lambda served: requested_chat(served, parsed)
        )

    async def complete(self, request: Request) -> Response:
        parsed = _parsed(await request.body(), CompletionRequest)
        return await self._answer(
            request, parsed.model, bool(parsed.stream), lambda served: requested_completion(served, parsed)
        )

    async def explain(self, request: Request, error: Exception) -> Response:
        """Answers a request that is refused, or that failed."""
        assert isinstance(error, RequestError)
        if not error.is_counted:
            self.metrics.requests.labels("", str(error.status)).inc()
        return error.response()

    def _served(self, name: str) -> ServedModel:
        served = self.models.get(name)
        if served is None:
            known = ", ".join(each.id for each in self.models.models)
            raise RequestError(
                404, f"model: there is no {name[:200]!r} here; there are {known}", code="model_not_found"
            )
        return served

    async def _answer(
        self, request: Request, name: str, stream: bool, read: Callable[[ServedModel], Requested]
    ) -> Response:
        answer = await self._begin(request, name, read)
        if stream:
            return StreamingResponse(self._events(answer), media_type="text/event-stream")
        with answer.counted(self.metrics):
            replies = await answer.within(whole_replies(answer.pending))
            return JSONResponse(answer.whole(replies))

    async def _begin(self, request: Request, name: str, read: Callable[[ServedModel], Requested]) -> Answer:
        """Reads a request for the model that has the name now, and queues it."""
        while True:
            served = self._served(name)
            try:
                wanted = await run_in_threadpool(read, served)
            except InputError as error:
                raise RequestError(400, str(error)) from None
            pending = wanted.pending()
            try:
                served.thread.submit(served.loaded, [each.request for each in pending])
                return Answer(served, wanted, pending, request)
            except BusyError:
                message = f"{self.models.limits.waiting} replies wait already, which is the limit; ask again later"
                raise RequestError(429, message, kind="rate_limit_error", code="queue_full") from None
            except GoneError:
                continue  # the alias has moved meanwhile

    async def _events(self, answer: Answer) -> AsyncIterator[bytes]:
        """Yields the events of a stream. What fails once it has begun is an event, too."""
        wanted, head = answer.wanted, answer.wanted.head
        replies: dict[int, Reply] = {}
        try:
            with answer.counted(self.metrics):
                for pending in answer.pending:
                    if (begin := wanted.first_chunk(pending.index)) is not None:
                        yield event(head.chunk([begin]))
                async with contextlib.aclosing(merged(answer.pending)) as events:
                    while len(replies) < len(answer.pending):
                        pending, found = await answer.within(anext(events))
                        if isinstance(found, Reply):
                            replies[pending.index] = found
                            yield event(head.chunk([wanted.last_chunk(pending.index, found)]))
                        else:
                            yield event(head.chunk([wanted.piece_chunk(pending.index, found)]))
                answer.replies = [replies[pending.index] for pending in answer.pending]
                if wanted.include_usage:
                    yield event(head.chunk([], usage_of(answer.replies, wanted.prompt_lengths)))
        except RequestError as error:
            yield event(error_body(str(error), error.kind, error.code))
        yield LAST_EVENT


async def _follow(models: ServedModels, seconds: float) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await run_in_threadpool(models.follow)
        except Exception:  # whatever the registry says, the models at work go on
            log.exception("the aliases could not be followed")


def _parsed(body: bytes, kind: type[Parsed]) -> Parsed:
    try:
        return parse_request(body, kind)
    except InputError as error:
        raise RequestError(400, str(error)) from None


def _model_facts(served: ServedModel) -> dict[str, Any]:
    return {"id": served.id, "object": "model", "created": served.since, "owned_by": "turnwise"}


async def _not_found(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return JSONResponse(error_body(f"{request.method} {request.url.path}: there is no such thing here"), status)
