"""Renders many conversations: in this process, or in several processes with a chat format each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from itertools import chain
from typing import TypeVar

from components.conversations.chat_formats import Tokenizer, load_chat_format
from components.conversations.chat_formats.bounded_template import UnboundedTemplateError
from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import shorten
from components.data.process_pool import StartPool, WorkPool, on_this_machine
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

CHUNK = 64

RenderResult = RenderedConversation | str  # a text is the reason why the format refuses a conversation
C = TypeVar("C", bound=Sized)
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """A chat format, in this process and in those of `pool`: see `rendering`."""

    chat_format: ChatFormat
    pool: WorkPool

    def render(self, conversations: Sequence[Conversation]) -> Iterator[RenderResult]:
        """Yields results in order; the reason instead of tokens for a conversation that the format refuses."""
        parts = (conversations[start : start + CHUNK] for start in range(0, len(conversations), CHUNK))
        yield from chain.from_iterable(self.map(render_chunk, map(list, parts)))

    def map(self, work: Callable[[ChatFormat, C], R], chunks: Iterable[C]) -> Iterator[R]:
        """Yields what `work`, a function of a module or a partial of one, makes of each chunk, in order."""
        return self.pool.map(partial(_with_format, work), chunks, here=partial(work, self.chat_format))


@contextmanager
def rendering(
    tokenizer: Tokenizer, spec: ChatFormatSpec, chat_format: ChatFormat, start_pool: StartPool = on_this_machine
) -> Iterator[Renderer]:
    """Renders in the processes of a pool, by default one per core, while the context lasts.

    They are given the tokenizer itself: to load one imports all of torch, seconds and 150 MB in each process.

    Args:
        chat_format: what load_chat_format makes of the tokenizer and `spec`.
    """
    with start_pool(partial(_use_format, tokenizer, spec.model_dump_json())) as pool:
        yield Renderer(chat_format=chat_format, pool=pool)


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


_OF_PROCESS: dict[str, Callable[[], ChatFormat]] = {}


def _use_format(tokenizer: Tokenizer, spec_json: str) -> None:
    """In a process as it starts. The format is loaded when a conversation is rendered."""
    _OF_PROCESS["format"] = cache(partial(load_chat_format, tokenizer, ChatFormatSpec.model_validate_json(spec_json)))


def _with_format(work: Callable[[ChatFormat, C], R], chunk: C) -> R:
    return work(_OF_PROCESS["format"](), chunk)
