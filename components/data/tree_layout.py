"""Positions and visibility of the tokens of a prefix tree, in the order in which RenderedConversation has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from components.conversations.chat_formats.rendered import Fork


def depths_of(num_tokens: int, forks: Sequence[Fork]) -> np.ndarray:
    """Returns the position of each token in its path, int64 [num_tokens]."""
    depths = np.arange(num_tokens)
    for fork in forks:
        depths[fork.start :] = np.arange(fork.depth, fork.depth + num_tokens - fork.start)
    return depths


def subtree_ends_of(num_tokens: int, forks: Sequence[Fork]) -> np.ndarray:
    """Returns, for each token, the first later token that does not see it, int64 [num_tokens].

    A fork that begins at depth d hides what the path before it had at depth d and deeper.
    """
    ends = np.full(num_tokens, num_tokens)
    depths = depths_of(num_tokens, forks)
    for fork in forks:
        before = slice(0, fork.start)
        hidden = (ends[before] == num_tokens) & (depths[before] >= fork.depth)
        ends[before][hidden] = fork.start
    return ends
