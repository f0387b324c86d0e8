"""Measures whether conversations that share a row see each other.

G groups of rows, T tokens in a sequence (a row has two), V vocabulary. These letters are used in this file only.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from components.data.batch import Batch
from components.data.model_inputs import model_inputs
from components.models.packed_attention import conversations_apart
from components.models.token_id_check import rows_of

GROUPS, LENGTH = 4, 8
# As a share of the effect of a sequence's own past: of a neighbor that is seen it was 0.5 (a state space) to 3 (no mask).
LEAK = 0.2
# Times the effect of rounding, as measured: in bf16 it was up to a fifth of the past's effect, and not each time the same.
ROUNDING = 2.0


@torch.no_grad()
def isolates_packed_rows(
    model: nn.Module, attention: str, device: torch.device, leak: float = LEAK, *, apart: bool = False
) -> bool:
    """Whether a sequence that shares a row gets the same logits as if it were alone, measured on a few tokens.

    A model that makes its own mask, or mixes tokens by other means than attention, may fail this. The neighbor's effect (or
    that of its absence, or of packed rows' own attention) is compared with the effect of the sequence's own past, and with
    that of rounding. Rounding is measured on one long sequence and its first half, alone: a GPU may take another kernel for
    another shape. So no tolerance depends on the model, its precision or its device. Where rounding hides the own past, no
    neighbor is found either.

    Args:
        leak: the share of the own past's effect that a neighbor's is taken for rounding up to.
        apart: packed rows are computed conversation by conversation (packed_attention.py) instead of by a mask.
    """
    neighbor, other_neighbor, sequence, other_past = _ordinary_tokens(rows_of(model)).to(device)
    half = LENGTH // 2
    changed = torch.cat([other_past[:, :half], sequence[:, half:]], dim=1)
    padding = torch.zeros_like(sequence)
    pairs = [(neighbor, sequence), (other_neighbor, sequence), (neighbor, changed), (sequence, padding)]
    rows = torch.cat([torch.cat(pair, dim=1) for pair in pairs])
    positions = torch.arange(LENGTH, device=device).repeat(len(rows), 2)
    positions[-GROUPS:, LENGTH:] = 0  # padding, as collate lays it out
    long = torch.cat([neighbor, sequence]).view(1, -1)
    was_training = model.training
    model.eval()
    try:
        with conversations_apart(model, [LENGTH] * (2 * len(rows)), device) if apart else contextlib.nullcontext():
            logits = _logits(model, attention, rows, positions).view(len(pairs), GROUPS, 2 * LENGTH, -1)
        in_no_row = _logits(model, attention, sequence, positions[:GROUPS, :LENGTH])
        whole, first_half = (_logits_alone(model, attention, part) for part in (long, long[:, : long.shape[1] // 2]))
    finally:
        model.train(was_training)
    packed, beside_another, with_other_past = logits[:3, :, LENGTH:]
    alone = logits[3, :, :LENGTH]
    neighbor_effect = max(_distance(packed, other) for other in (beside_another, alone, in_no_row))
    own_effect = _distance(packed[:, half:], with_other_past[:, half:])
    rounding = _distance(whole[:, : first_half.shape[1]], first_half)
    # Squares: what is measured of either effect has the rounding's in it, which is independent of it.
    return neighbor_effect**2 <= (leak * own_effect) ** 2 + (ROUNDING * rounding) ** 2


def _ordinary_tokens(rows: int) -> Tensor:
    """Returns token ids [4, G, T], the same at each call.

    Of a real model the first token of a sequence has hardly an effect, whatever it is, and after control tokens it is so
    uncertain that rounding changes its answer. Control tokens mostly lie at the ends of a vocabulary.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows // 8, rows // 2, (4, GROUPS, LENGTH), generator=generator)


def _logits(model: Any, attention: str, token_ids: Tensor, position_ids: Tensor) -> Tensor:
    """Returns logits [rows, tokens, V]."""
    logits: Tensor = model(**model_inputs(unscored_batch(token_ids, position_ids), attention), use_cache=False).logits
    return logits.view(*token_ids.shape, -1)


def _logits_alone(model: Any, attention: str, token_ids: Tensor) -> Tensor:
    return _logits(model, attention, token_ids, torch.arange(token_ids.shape[1], device=token_ids.device)[None])


def _distance(one: Tensor, other: Tensor) -> float:
    """Returns the root mean square of what two tensors of logits differ by."""
    return float((one.float() - other.float()).square().mean().sqrt())


def unscored_batch(token_ids_BT: Tensor, position_ids_BT: Tensor) -> Batch:
    """Returns a batch without targets, of one conversation a row as far as its `lengths` say."""
    nothing_BT = torch.zeros_like(token_ids_BT)
    return Batch(
        token_ids_BT=token_ids_BT,
        labels_BT=nothing_BT,
        weights_BT=nothing_BT.float(),
        position_ids_BT=position_ids_BT,
        segment_ids_BT=nothing_BT,
        lengths=(token_ids_BT.shape[1],) * len(token_ids_BT),
    )
