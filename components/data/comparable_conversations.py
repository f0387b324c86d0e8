"""Finds held-out conversations on which two models can be compared: equal tokens for both, and seen by neither."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import fit_length
from components.data.token_store import TokenStore


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


def _equal(store: TokenStore, index: int, rendered: RenderedConversation) -> bool:
    token_ids, weights = store[index]
    return (
        store.forks(index) == rendered.forks
        and np.array_equal(token_ids, np.asarray(rendered.token_ids, dtype=np.int32))
        and np.array_equal(weights, np.asarray(rendered.target_weights, dtype=np.float32))
    )
