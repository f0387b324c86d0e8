"""A conversation as tokens, and which of them are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedConversation:
    """target_weights[i] is the loss weight of predicting token_ids[i]; 0.0 if it is not a target.

    `turn_ends` are the lengths of the prefixes that end after a scored turn's stop token: there a truncation may cut.
    """

    token_ids: tuple[int, ...]
    target_weights: tuple[float, ...]
    turn_ends: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.target_weights):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.target_weights)} target weights")
        if self.target_weights and self.target_weights[0] > 0:
            raise ValueError("the first token cannot be a target: nothing comes before it to predict it from")

    @property
    def num_targets(self) -> int:
        return sum(weight > 0 for weight in self.target_weights)

    def labels(self) -> list[int]:
        return labels_of(self.token_ids, self.target_weights)


def labels_of(token_ids: Sequence[int], target_weights: Sequence[float]) -> list[int]:
    """Returns token_ids[i] where it is a target, else IGNORE_INDEX. Not shifted: a model predicts i from i - 1."""
    return [token if weight > 0 else IGNORE_INDEX for token, weight in zip(token_ids, target_weights, strict=True)]
