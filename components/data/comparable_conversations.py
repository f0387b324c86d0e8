"""Finds held-out conversations on which two models can be compared: equal tokens or equal words, and seen by neither."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

import numpy as np

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import bytes_left, fit_length
from components.data.token_store import Entry, TokenStore


def unseen_conversations(store: TokenStore, trained_on: Set[str] | None) -> tuple[int, ...] | None:
    """Returns the conversations whose text and group were not trained on; None if the keys of either side are unknown."""
    if trained_on is None or store.keys is None:
        return None
    return tuple(index for index, keys in enumerate(store.keys) if trained_on.isdisjoint(keys))


def find_render_differences(
    store: TokenStore, chat_format: ChatFormat, max_tokens: int, context: int | None = None
) -> list[str] | None:
    """Returns the sources of conversations that a chat format renders with other tokens or weights than the store's.

    None if the store has no conversations beside its tokens, as in earlier versions.
    """
    others = []
    for index in range(len(store)):
        conversation = store.conversation(index)
        if conversation is None:
            return None
        try:
            rendered = fit_length(chat_format.render(conversation), max_tokens, truncate=True, max_depth=context)
        except ValueError:  # this format refuses what the store's format accepts
            rendered = None
        if rendered is None or not _equal(store, index, rendered):
            others.append(store.source(index))
    return others


@dataclass(frozen=True, kw_only=True)
class OwnRendering:
    """Conversations of a store as another chat format renders them: the same scored words in other tokens.

    `entries` by their index in the store. Of the others, `refused` counts those that the format cannot render, `too_long`
    those that do not fit whole, and `other_words` those of which the two formats score different words, or none.
    """

    entries: dict[int, Entry]
    refused: int
    too_long: int
    other_words: int

    def left_out(self) -> str:
        """Returns a sentence about what cannot be compared; "" if all can."""
        counts = {
            "cannot be rendered by its chat format": self.refused,
            "are too long for it": self.too_long,
            "do not have the same scored words in both chat formats": self.other_words,
        }
        told = [f"{count} {words}" for words, count in counts.items() if count]
        return f"left out for both: {', '.join(told)}" if told else ""


def render_anew(
    store: TokenStore, chat_format: ChatFormat, max_tokens: int, context: int | None = None
) -> OwnRendering:
    """Renders the conversations of a store in another chat format, so that losses compare by their bytes.

    A conversation that is truncated in the store, or would be here, counts only if both keep the same turns. The store must
    have the conversations beside its tokens.
    """
    entries: dict[int, Entry] = {}
    refused = too_long = other_words = 0
    for index in range(len(store)):
        conversation = store.conversation(index)
        assert conversation is not None
        try:
            rendered = chat_format.render(conversation)
        except ValueError:
            refused += 1
            continue
        fitted = fit_length(rendered, max_tokens, truncate=True, max_depth=context)
        if fitted is None:
            too_long += 1
            continue
        num_bytes = bytes_left(conversation, rendered, fitted, chat_format)
        if num_bytes == store.target_bytes[index] and num_bytes:
            entries[index] = Entry(source=store.source(index), rendered=fitted, target_bytes=num_bytes)
        elif fitted is not rendered:
            too_long += 1
        else:
            other_words += 1
    return OwnRendering(entries=entries, refused=refused, too_long=too_long, other_words=other_words)


def _equal(store: TokenStore, index: int, rendered: RenderedConversation) -> bool:
    token_ids, weights = store[index]
    return (
        store.forks(index) == rendered.forks
        and np.array_equal(token_ids, np.asarray(rendered.token_ids, dtype=np.int32))
        and np.array_equal(weights, np.asarray(rendered.target_weights, dtype=np.float32))
    )
