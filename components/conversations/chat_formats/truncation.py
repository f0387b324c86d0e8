"""Truncation removes the last turns of a long conversation, never the stop token of a scored turn that remains."""

from __future__ import annotations

from components.conversations.chat_formats.rendered import RenderedConversation


def fit_length(rendered: RenderedConversation, max_tokens: int, *, truncate: bool) -> RenderedConversation | None:
    """Returns the conversation if it fits, or (truncate) its first turns; None if not even one scored turn fits."""
    if len(rendered.token_ids) <= max_tokens:
        return rendered
    ends = [end for end in rendered.turn_ends if end <= max_tokens]
    return rendered.cut(ends[-1]) if truncate and ends else None
