"""The weighted loss of scored positions through a linear head, its gradient made together with it.

Logits are large: for each position as many numbers as the vocabulary has. So they are made chunk by chunk, and none is kept
for the backward pass. Other than by checkpointing, a chunk's logits are made once: as soon as they are there, so is their
gradient, and what follows from it for hidden states and head. That is three matrix products in place of four, and two in
place of three where the head is frozen.

N scored positions, n of them in a chunk, H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.models.precision import computed_in


def is_plain(head: nn.Module) -> bool:
    """Whether a head multiplies by its weight and does nothing else: no bias, no adapter, no packed weight, no hook."""
    hooks = (head._forward_hooks, head._forward_pre_hooks, head._backward_hooks, head._backward_pre_hooks)
    return type(head) is nn.Linear and head.bias is None and not any(hooks)


def weighted_loss_sum(
    hidden_NH: Tensor, head: nn.Module, labels_N: Tensor, weights_N: Tensor, positions: int
) -> Tensor:
    """Returns the sum of weight x cross entropy (nats), a float32 scalar with gradients for hidden states and head.

    It multiplies at autocast's precision where that is on. `weights_N` are float32 and have no gradient themselves. The sum
    is meant to be differentiated as it is: what it is multiplied by afterwards, 16-bit gradients are rounded once more for.

    Args:
        head: one that is_plain.
        positions: how many are computed at once.
    """
    head_VH = cast(Tensor, head.weight)
    if not torch.is_grad_enabled():  # a Function does not know it
        hidden_NH, head_VH = hidden_NH.detach(), head_VH.detach()
    applied = _WeightedLossSum.apply(hidden_NH, head_VH, labels_N, weights_N, positions)  # type: ignore[no-untyped-call]
    return cast(Tensor, applied)


class _WeightedLossSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor, weights_N: Tensor, positions: int
    ) -> Tensor:
        device, dtype = hidden_NH.device.type, computed_in(head_VH)
        of_hidden, of_head = ctx.needs_input_grad[:2]
        factor_VH, total = head_VH.to(dtype), hidden_NH.new_zeros((), dtype=torch.float32)
        hidden_gradients, head_gradient_VH = [], None
        with torch.autocast(device, enabled=False):
            chunks = [torch.split(tensor, positions) for tensor in (hidden_NH.to(dtype), labels_N, weights_N)]
            for hidden_nH, labels_n, weights_n in zip(*chunks, strict=True):
                log_probabilities_nV = F.log_softmax((hidden_nH @ factor_VH.T).float(), dim=1)
                losses_n = F.nll_loss(log_probabilities_nV, labels_n, reduction="none")
                total += (losses_n * weights_n).sum()
                if not (of_hidden or of_head):
                    continue
                slope_nV = log_probabilities_nV.exp_()  # of the loss, by the logits: probabilities less the label's 1
                slope_nV.scatter_add_(1, labels_n[:, None], slope_nV.new_full((len(labels_n), 1), -1.0))
                slope_nV = slope_nV.mul_(weights_n[:, None]).to(dtype)
                if of_hidden:
                    hidden_gradients.append(slope_nV @ factor_VH)
                if of_head:
                    part_VH = (slope_nV.T @ hidden_nH).to(head_VH.dtype)
                    head_gradient_VH = part_VH if head_gradient_VH is None else head_gradient_VH.add_(part_VH)
        ctx.save_for_backward(torch.cat(hidden_gradients) if of_hidden else None, head_gradient_VH)
        ctx.dtype = hidden_NH.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (of_total,) = gradients
        hidden_NH, head_VH = ctx.saved_tensors
        of_hidden = None if hidden_NH is None else hidden_NH.mul_(of_total).to(ctx.dtype)
        of_head = None if head_VH is None else head_VH.mul_(of_total)  # in place: it is as large as the head
        return of_hidden, of_head, None, None, None
