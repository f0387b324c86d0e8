"""A conversation that is too long loses its last turns, never the stop token that ends a scored one."""

from __future__ import annotations

from typing import Literal

from components.conversations.rendered import RenderedConversation


def fit_length(
    rendered: RenderedConversation, max_tokens: int, too_long: Literal["truncate", "drop", "fail"], source: str
) -> RenderedConversation | None:
    """What fits into max_tokens: all of it, its first turns, or None (not even one scored turn fits, or `drop`).

    Raises ValueError under `fail`, with the conversation's length and the way out.
    """
    length = len(rendered.token_ids)
    if length <= max_tokens:
        return rendered
    if too_long == "fail":
        raise ValueError(
            f"{source}: {length} tokens, data.max_tokens is {max_tokens}; raise it, or set data.too_long to truncate or drop"
        )
    ends = [end for end in rendered.turn_ends if end <= max_tokens]
    if too_long == "drop" or not ends:
        return None
    return RenderedConversation(
        token_ids=rendered.token_ids[: ends[-1]],
        target_weights=rendered.target_weights[: ends[-1]],
        turn_ends=tuple(ends),
    )
