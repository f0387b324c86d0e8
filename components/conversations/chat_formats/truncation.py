"""Truncation removes the last turns of a long conversation, never the stop token of a scored turn that remains."""

from __future__ import annotations

import itertools

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.chat_formats.rendered import RenderedConversation, lengths_up_to
from components.conversations.messages import Conversation
from components.conversations.target_bytes import target_bytes


def fit_length(
    rendered: RenderedConversation, max_tokens: int, *, truncate: bool, max_depth: int | None = None
) -> RenderedConversation | None:
    """Returns the conversation if it fits, or (truncate) its first turns; None if not even one scored turn fits.

    Args:
        max_depth: the most tokens of one path, None for any number: what the model can take.
    """
    fits_depth = max_depth is None or rendered.longest_path <= max_depth
    if len(rendered.token_ids) <= max_tokens and fits_depth:
        return rendered
    # Of the tree up to each end of a turn.
    depths = lengths_up_to(rendered.turn_ends, len(rendered.token_ids), rendered.forks)
    longest_paths = itertools.accumulate(depths, max)
    ends = [
        end
        for end, depth in zip(rendered.turn_ends, longest_paths, strict=True)
        if end <= max_tokens and (max_depth is None or depth <= max_depth)
    ]
    return rendered.cut(ends[-1]) if truncate and ends else None


def bytes_left(
    conversation: Conversation, rendered: RenderedConversation, fitted: RenderedConversation, chat_format: ChatFormat
) -> int:
    """Returns target_bytes as a chat format scores them. `fitted` is what fit_length has left of `rendered`."""
    turns = None if fitted is rendered else len(fitted.turn_ends)
    return target_bytes(conversation, turns=turns, thoughts=chat_format.scores_thoughts)
