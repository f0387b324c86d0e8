"""A model's loss on general text, passage by passage: what a comparison of two models pairs."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class GeneralScores(BaseModel):
    """`sums` are nats of each passage, over its `num_targets` tokens. `num_bytes` is 0 where a passage was cut.

    `tokens` is a digest of all token ids: where it is equal, losses per token are of the same tokens.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    sums: tuple[float, ...]
    num_targets: tuple[int, ...]
    num_bytes: tuple[int, ...]
    tokens: str

    @property
    def loss(self) -> float:
        """Nats per token."""
        return sum(self.sums) / sum(self.num_targets)
