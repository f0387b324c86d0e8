"""Renders many conversations: in this process, or in several processes that each load the tokenizer once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from components.conversations.chat_formats.bounded_template import UnboundedTemplateError
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.load_format import load_format_of
from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import shorten
from components.data.workers import Chunk, Workers
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

CHUNK = 64

RenderResult = RenderedConversation | str  # a text is the reason why the format refuses a conversation
C = TypeVar("C", bound=Chunk)
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """A chat format, in this process and in those of `workers`."""

    chat_format: ChatFormat
    model_path: Path
    spec: ChatFormatSpec
    workers: Workers

    def render(self, conversations: Sequence[Conversation]) -> Iterator[RenderResult]:
        """Yields results in order; the reason instead of tokens for a conversation that the format refuses."""
        parts = (conversations[start : start + CHUNK] for start in range(0, len(conversations), CHUNK))
        yield from chain.from_iterable(self.map(render_chunk, map(list, parts)))

    def map(self, work: Callable[[ChatFormat, C], R], chunks: Iterable[C]) -> Iterator[R]:
        """Yields what `work`, a function of a module or a partial of one, makes of each chunk, in order."""
        in_process = partial(_with_format, work, self.model_path, self.spec.model_dump_json())
        return self.workers.map(in_process, chunks, here=partial(work, self.chat_format))


def render_chunk(chat_format: ChatFormat, conversations: Sequence[Conversation]) -> list[RenderResult]:
    with chat_format.ahead(conversations):
        return [_render_or_reason(chat_format, conversation) for conversation in conversations]


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


def _with_format(work: Callable[[ChatFormat, C], R], model_path: Path, spec_json: str, chunk: C) -> R:
    return work(_load_format(model_path, spec_json), chunk)


@cache  # once per process
def _load_format(model_path: Path, spec_json: str) -> ChatFormat:
    return load_format_of(model_path, ChatFormatSpec.model_validate_json(spec_json))
