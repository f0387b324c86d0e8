"""Truncation removes the last turns of a long conversation, never the stop token of a scored turn that remains."""

from __future__ import annotations

import itertools

from components.conversations.chat_formats.rendered import RenderedConversation, sequences_of


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
    ends = [
        end
        for end, depth in zip(rendered.turn_ends, _depths_of_ends(rendered), strict=True)
        if end <= max_tokens and (max_depth is None or depth <= max_depth)
    ]
    return rendered.cut(ends[-1]) if truncate and ends else None


def _depths_of_ends(rendered: RenderedConversation) -> list[int]:
    """Returns the number of tokens of the longest path up to each end of a turn."""
    depths = []
    for sequence in sequences_of(len(rendered.token_ids), rendered.forks):
        start, stop = sequence.spans[-1]
        depths += [sequence.length - (stop - end) for end in rendered.turn_ends if start < end <= stop]
    return list(itertools.accumulate(depths, max))
