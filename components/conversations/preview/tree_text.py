"""The tokens of a prefix tree in one order for people: the conversation once, with what each turn's prompt lacks or adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

from components.conversations.chat_formats.rendered import Fork

# "once": only the turn that it belongs to sees it. "later": only the prompts of later turns have it.
Seen = Literal["always", "once", "later"]


@dataclass(slots=True)
class ShownToken:
    token_id: int
    weight: float
    seen: Seen = "always"


def shown_tokens(token_ids: Sequence[int], weights: Sequence[float], forks: Sequence[Fork]) -> list[ShownToken]:
    """Returns the tokens in order. Where a fork repeats what the path before it had, that is shown once."""
    starts = [0, *(fork.start for fork in forks), len(token_ids)]
    tokens = [ShownToken(int(id), float(weight)) for id, weight in zip(token_ids, weights, strict=True)]
    shown = tokens[: starts[1]]
    path = list(shown)  # of the newest sequence
    for fork, end in zip(forks, starts[2:], strict=True):
        path = [*path[: fork.depth], *_merge(shown, path[fork.depth :], tokens[fork.start : end])]
    return shown


def _merge(shown: list[ShownToken], aside: list[ShownToken], new: list[ShownToken]) -> list[ShownToken]:
    """Adds new tokens to those shown, and marks what they leave out of `aside`. Returns the path's tokens for `new`."""
    matcher = SequenceMatcher(
        None, [token.token_id for token in aside], [token.token_id for token in new], autojunk=False
    )
    path: list[ShownToken] = []
    for kind, begin, end, new_begin, new_end in matcher.get_opcodes():
        if kind == "equal":
            path += aside[begin:end]
            continue
        for token in aside[begin:end]:
            token.seen = "once"
        added = new[new_begin:new_end]
        if new_end < len(new):  # the last ones are how the conversation goes on
            for token in added:
                token.seen = "later"
        at = _index(shown, aside[end]) if end < len(aside) else len(shown)
        shown[at:at] = added
        path += added
    return path


def _index(shown: list[ShownToken], token: ShownToken) -> int:
    return next(number for number, other in enumerate(shown) if other is token)
