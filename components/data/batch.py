"""The input of one forward pass. B rows, T tokens in a row (padded to the longest row of the batch)."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Packed rows. Position t is scored on predicting labels_BT[:, t], which is token t + 1 where that is a target.

    token_ids_BT: int64, padding is the format's pad token.
    labels_BT: int64, *already shifted*: labels_BT[b, t] = token_ids_BT[b, t + 1] if that token is a target of the same
        conversation, else -100. The last position of every conversation is -100.
    weights_BT: float32, the loss weight of each label, 0.0 where the label is -100.
    position_ids_BT: int64, restarting at 0 with every conversation of a row; those of padding follow the last one's.
    segment_ids_BT: int64, 1, 2, ... per conversation of the row, 0 for padding: a token attends only to earlier tokens
        of its own segment.
    subtree_ends_BT: int64, None if every conversation is a path. Token i sees token j of its row, and itself, if and only if
        j <= i < subtree_ends_BT[b, j]: in a prefix tree a token is seen by what continues it. Positions are depths there.
    has_restarts: whether a row has several conversations, or a tree: else positions are 0, 1, 2, ... in every row.
    targets_2N: int64, the rows and columns of the N labels: on a GPU, looking for them would be waited for. None if nobody
        looked.
    lengths: tokens of each conversation, and of the padding behind the last of a row, one row after the other: B x T
        together. They stay in the host's memory. Empty if nobody counted.
    """

    token_ids_BT: Tensor
    labels_BT: Tensor
    weights_BT: Tensor
    position_ids_BT: Tensor
    segment_ids_BT: Tensor
    subtree_ends_BT: Tensor | None = None
    has_restarts: bool = True
    targets_2N: Tensor | None = None
    lengths: tuple[int, ...] = ()

    @property
    def num_targets(self) -> int:
        return int((self.weights_BT > 0).sum())

    def to(self, device: torch.device) -> Batch:
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: one.to(device) for name, one in given.items() if isinstance(one, Tensor)}
        return replace(self, **moved)
