"""A passage of general text, as it travels to the processes of a search: without what encodes or scores it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """A text as tokens, of which those from `first_target` on are scored. `num_bytes` is that of the text, in UTF-8.

    `num_bytes` is 0 where the text was cut to fit: then its loss says nothing of the whole text.
    """

    token_ids: tuple[int, ...]
    first_target: int
    num_bytes: int

    @property
    def num_targets(self) -> int:
        return len(self.token_ids) - self.first_target
