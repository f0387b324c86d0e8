"""A conversation as a model sees it, with the tokens it is scored on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

IGNORE_INDEX = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedConversation:
    """target_weights[i] is the weight of producing token_ids[i] in the loss; 0.0 where it is not a target.

    `turn_ends` are the lengths of the prefixes that end right after a scored turn's stop token: where a truncation may cut.
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
    """labels[i] is token_ids[i] where it is a target, else IGNORE_INDEX. Not shifted: a model predicts i from i - 1."""
    return [token if weight > 0 else IGNORE_INDEX for token, weight in zip(token_ids, target_weights, strict=True)]
