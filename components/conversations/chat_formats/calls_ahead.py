"""What rendering a conversation will ask its template for, so that many conversations can ask at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from components.conversations.chat_formats.bounded_template import TemplateCall
from components.conversations.chat_formats.template_dialect import Raw
from components.conversations.chat_formats.turn_borders import MAX_TURNS_RENDERED

MAX_LETTERS_AHEAD = 100_000  # of a conversation, times its turns: longer ones gain nothing, and would fill the memory


def calls_ahead(raw: Sequence[Raw], tools: list[Any]) -> Iterator[TemplateCall]:
    """Yields the whole conversation, and up to the start and the end of each turn; nothing for a long one."""
    turns = [position for position, message in enumerate(raw) if message["role"] == "assistant"]
    letters = sum(len(message["content"]) for message in raw)
    if len(turns) > MAX_TURNS_RENDERED or len(turns) * letters > MAX_LETTERS_AHEAD:
        return
    if tools:
        yield TemplateCall(raw, [], ask=False)
    for position in turns:
        yield TemplateCall(raw[:position], tools, ask=True)
        yield TemplateCall(raw[: position + 1], tools, ask=False)
    if not turns or turns[-1] != len(raw) - 1:
        yield TemplateCall(raw, tools, ask=False)
