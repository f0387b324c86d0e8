"""Held-out conversations on which two models can be compared: both are scored on the same tokens, and neither saw them."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from components.conversations.chat_formats.base import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.truncation import fit_length
from components.data.token_store import TokenStore


def unseen_conversations(store: TokenStore, trained_on: Set[str] | None) -> tuple[int, ...] | None:
    """Those of which neither the words nor the group were trained on; None if one of the two sides cannot say."""
    if trained_on is None or store.keys is None:
        return None
    return tuple(index for index, keys in enumerate(store.keys) if trained_on.isdisjoint(keys))


def find_render_differences(store: TokenStore, chat_format: ChatFormat, max_tokens: int) -> list[str] | None:
    """The sources of those that a chat format turns into other tokens or weights than the store's.

    None if the store was written before the conversations were kept beside their tokens.
    """
    others = []
    for index in range(len(store)):
        conversation = store.conversation(index)
        if conversation is None:
            return None
        try:
            rendered = fit_length(chat_format.render(conversation), max_tokens, truncate=True)
        except ValueError:  # it refuses what the other one takes
            rendered = None
        if rendered is None or not _equal(store, index, rendered):
            others.append(store.source(index))
    return others


def _equal(store: TokenStore, index: int, rendered: RenderedConversation) -> bool:
    token_ids, weights = store[index]
    return np.array_equal(token_ids, np.asarray(rendered.token_ids, dtype=np.int32)) and np.array_equal(
        weights, np.asarray(rendered.target_weights, dtype=np.float32)
    )
