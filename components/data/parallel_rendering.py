"""Renders many conversations: in this process, or in several processes that each load the tokenizer once."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from components.conversations.chat_formats.bounded_template import UnboundedTemplateError
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.load_format import load_format_of
from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import shorten
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

FEWER_IN_PROCESS = 500  # with fewer conversations, starting processes costs more than it saves
CHUNK = 64
AHEAD = 3  # chunks for each process: one that is rendered, one that is next, one whose result is read

RenderResult = RenderedConversation | str  # a text is the reason why the format refuses a conversation


class Renderer:
    """Renders with `processes` processes, by default one per core."""

    def __init__(
        self, chat_format: ChatFormat, *, model_path: Path, spec: ChatFormatSpec, processes: int | None = None
    ) -> None:
        self.chat_format = chat_format
        self.setup = (model_path, spec.model_dump_json())
        self.processes = processes or os.cpu_count() or 1

    def render(self, conversations: Sequence[Conversation]) -> Iterator[RenderResult]:
        """Yields results in order; the reason instead of tokens for a conversation that the format refuses."""
        chunks = (conversations[start : start + CHUNK] for start in range(0, len(conversations), CHUNK))
        if self.processes == 1 or len(conversations) < FEWER_IN_PROCESS:
            for chunk in chunks:
                yield from render_chunk(self.chat_format, chunk)
            return
        with ProcessPoolExecutor(self.processes, get_context("spawn")) as pool:
            yield from self._in_order(pool, chunks)

    def _in_order(self, pool: ProcessPoolExecutor, chunks: Iterator[Sequence[Conversation]]) -> Iterator[RenderResult]:
        """Renders as far ahead as keeps every process busy, and no further: what waits for its reader is held in memory."""
        started = (pool.submit(_render_chunk, *self.setup, chunk) for chunk in chunks)
        waiting = deque(itertools.islice(started, AHEAD * self.processes))
        try:
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(itertools.islice(started, 1))
                yield from done
        finally:  # who stops reading waits only for what is being rendered
            for each in waiting:
                each.cancel()


def _render_or_reason(chat_format: ChatFormat, conversation: Conversation) -> RenderResult:
    """Returns the tokens, or why there are none, whatever that is: one conversation spoils no other.

    But a template that does not end would not end for the next ones either: UnboundedTemplateError is raised on.
    """
    try:
        return chat_format.render(conversation)
    except UnboundedTemplateError:
        raise
    except InputError as error:
        return shorten(str(error))
    except Exception as error:  # noqa: BLE001 - templates and tokenizers are the model's own
        return shorten(f"{conversation.source}: cannot be rendered ({type(error).__name__}: {error})")


@cache  # once per process
def _load_format(model_path: Path, spec_json: str) -> ChatFormat:
    return load_format_of(model_path, ChatFormatSpec.model_validate_json(spec_json))


def _render_chunk(model_path: Path, spec_json: str, conversations: Sequence[Conversation]) -> list[RenderResult]:
    return render_chunk(_load_format(model_path, spec_json), conversations)


def render_chunk(chat_format: ChatFormat, conversations: Sequence[Conversation]) -> list[RenderResult]:
    with chat_format.ahead(conversations):
        return [_render_or_reason(chat_format, conversation) for conversation in conversations]
