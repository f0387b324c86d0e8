"""Rows of a store, made of packed conversations: rendered and cut to fit, or refused with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import bytes_left, fit_length
from components.data.conversation_file import unpack
from components.data.parallel_rendering import render_chunk
from components.data.split_membership import keys_of
from components.data.token_store import Entry, batch_of

Kind = Literal["dropped_bad", "dropped_too_long"]
BAD: Kind = "dropped_bad"
TOO_LONG: Kind = "dropped_too_long"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRules:
    """`context` is the most tokens of a path, None for any number. `keep` keeps the text of each conversation."""

    max_tokens: int
    truncate: bool
    context: int | None
    keep: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """`problem` begins with the conversation's source, `way_out` goes on behind it."""

    kind: Kind
    problem: str
    way_out: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedRows:
    """Rows of token_store.SCHEMA in order, and the refused ones."""

    rows: pa.RecordBatch
    refused: tuple[Refusal, ...]


def rendered_rows(rules: RowRules, chat_format: ChatFormat, packed: Sequence[bytes]) -> RenderedRows:
    """Raises UnboundedTemplateError."""
    conversations = [unpack(content) for content in packed]
    entries: list[Entry] = []
    refused: list[Refusal] = []
    for conversation, rendered in zip(conversations, render_chunk(chat_format, conversations), strict=True):
        if isinstance(rendered, str):
            refused.append(Refusal(kind=BAD, problem=rendered, way_out=" (data.on_bad_row=drop leaves it out)"))
            continue
        fitted = fit_length(rendered, rules.max_tokens, truncate=rules.truncate, max_depth=rules.context)
        if fitted is None:
            refused.append(_too_long(conversation.source, rendered, rules))
            continue
        entry = Entry(
            source=conversation.source,
            rendered=fitted,
            truncated=len(fitted.token_ids) < len(rendered.token_ids),
            target_bytes=bytes_left(conversation, rendered, fitted, chat_format),
            keys=keys_of(conversation),
            conversation=conversation if rules.keep else None,
        )
        entries.append(entry)
    return RenderedRows(rows=batch_of(entries), refused=tuple(refused))


def _too_long(source: str, rendered: RenderedConversation, rules: RowRules) -> Refusal:
    if len(rendered.token_ids) > rules.max_tokens:
        length = f"{len(rendered.token_ids)} tokens, data.max_tokens is {rules.max_tokens}"
        advice = "raise it, or set "
    else:
        longest = f"an answer and what is before it are {rendered.longest_path} tokens"
        length = f"{longest}, the model's context (max_position_embeddings) is {rules.context}"
        advice = "set "
    return Refusal(kind=TOO_LONG, problem=f"{source}: {length}", way_out=f"; {advice}data.too_long to truncate or drop")
