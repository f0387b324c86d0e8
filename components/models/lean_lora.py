"""A linear layer with LoRA adapters, computed in fewer passes over its output than peft's own layer makes.

peft adds the adapter's output to the layer's: it scales one matrix of all outputs and adds up two, and as much is done again
in the backward pass. Here the adapter's narrow middle is scaled, and both products are added up where they are made. Where
peft keeps two copies of a layer's input for its dropout, here a mask of one byte a number is kept.

One adapter adapts all tokens, or several adapt each a part of them (shared_base.py): the layer's own product is made once
for all tokens, and the narrow ones of an adapter for its own tokens only.

B rows, T tokens in a row, N tokens of one adapter, I inputs and O outputs of the layer, R the rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from components.models.precision import computed_in

Place = tuple[slice, slice]  # rows and columns of [B, T]
WHOLE: Place = (slice(None), slice(None))
Drawing = Callable[[], contextlib.AbstractContextManager[None]]


def make_lean(model: nn.Module) -> None:
    """Lets plain linear layers with adapters compute so. In all else (names, states, merging) they remain peft's.

    Only, hooks on the layer below an adapter, or on its halves, are not called.
    """
    for module in model.modules():
        if type(module) is Linear and type(cast(Any, module).get_base_layer()) is nn.Linear:
            module.__class__ = LeanLoraLinear


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPart:
    """An adapter of a layer, and the tokens that it adapts. `drawing` holds while its dropout is drawn."""

    down_RI: Tensor
    up_OR: Tensor
    scaling: float
    dropout: float = 0.0
    place: Place = WHOLE
    drawing: Drawing = contextlib.nullcontext


class LeanLoraLinear(Linear):  # type: ignore[misc]
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's where there is one plain adapter in use, and one precision; anything else is peft's own."""
        dtype = computed_in(x)
        name = self._adapter_in_use()
        base = self.get_base_layer()
        if args or kwargs or name is None or base.weight.dtype != dtype:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        x_BTI = x.to(dtype).reshape(1, -1, x.shape[-1])
        found_BTO = adapted_linear(x_BTI, base, [self.part(name)])
        return found_BTO.view(*x.shape[:-1], base.out_features)

    def part(self, name: str, place: Place = WHOLE, drawing: Drawing = contextlib.nullcontext) -> AdapterPart:
        """One of the layer's adapters, which must be plain, for these tokens."""
        dropout = self.lora_dropout[name]
        return AdapterPart(
            down_RI=self.lora_A[name].weight,
            up_OR=self.lora_B[name].weight,
            scaling=self.scaling[name],
            dropout=dropout.p if isinstance(dropout, nn.Dropout) and self.training else 0.0,
            place=place,
            drawing=drawing,
        )

    def is_plain(self, name: str) -> bool:
        """Whether an adapter is two matrices and nothing else."""
        return name in self.lora_A and name not in self.lora_variant and self.lora_B[name].bias is None

    def _adapter_in_use(self) -> str | None:
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1 or not self.is_plain(names[0]):
            return None
        return cast(str, names[0])


def adapted_linear(x_BTI: Tensor, layer: nn.Linear, parts: Sequence[AdapterPart]) -> Tensor:
    """Returns [B, T, O]: x W' + bias, plus scaling (x down') up' for the tokens of each part.

    The layer's own weight and bias are frozen. Dropout's numbers are drawn as torch's own dropout would draw them.
    """
    weights = [weight for part in parts for weight in (part.down_RI, part.up_OR)]
    applied = _AdaptedLinear.apply(x_BTI, layer.weight, layer.bias, parts, *weights)  # type: ignore[no-untyped-call]
    return cast(Tensor, applied)


class _AdaptedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BTI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        parts: Sequence[AdapterPart],
        *weights: Tensor,
    ) -> Tensor:
        middles, masks = [], []
        with torch.autocast(x_BTI.device.type, enabled=False):
            bias_O = None if bias_O is None else bias_O.to(x_BTI.dtype)
            found_BTO = F.linear(x_BTI, weight_OI.to(x_BTI.dtype), bias_O)
            for part, down_RI, up_OR in zip(parts, weights[::2], weights[1::2], strict=True):
                own_NI, mask_NI = _with_dropout(x_BTI[part.place], part)
                middle_NR = (own_NI @ down_RI.to(x_BTI.dtype).T).mul_(part.scaling)
                _add_product(found_BTO[part.place], middle_NR, up_OR.to(x_BTI.dtype).T)
                middles.append(middle_NR)
                masks.append(mask_NI)
        ctx.save_for_backward(x_BTI, weight_OI, *weights, *middles, *masks)
        ctx.parts = [(part.place, part.scaling, 1.0 - part.dropout) for part in parts]
        return found_BTO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient_BTO,) = gradients
        x_BTI, weight_OI, *saved = ctx.saved_tensors
        count = len(ctx.parts)
        weights, middles, masks = saved[: 2 * count], saved[2 * count : 3 * count], saved[3 * count :]
        of_x_BTI = gradient_BTO @ weight_OI.to(x_BTI.dtype) if ctx.needs_input_grad[0] else None
        of_weights: list[Tensor] = []
        for number, (place, scaling, kept) in enumerate(ctx.parts):
            down_RI, up_OR, mask_NI = weights[2 * number], weights[2 * number + 1], masks[number]
            gradient_NO = _flat(gradient_BTO[place])
            of_middle_NR = (gradient_NO @ up_OR.to(x_BTI.dtype)).mul_(scaling)
            own_NI = _flat(x_BTI[place])
            if mask_NI is not None:
                own_NI = _masked(own_NI, mask_NI, kept, down_RI.dtype)
            of_weights.append((of_middle_NR.T @ own_NI).to(down_RI.dtype))
            of_weights.append((gradient_NO.T @ middles[number]).to(up_OR.dtype))
            if of_x_BTI is None:
                continue
            if mask_NI is None:
                _add_product(of_x_BTI[place], of_middle_NR, down_RI.to(x_BTI.dtype))
            else:
                of_own_NI = of_middle_NR @ down_RI.to(x_BTI.dtype)
                of_x_BTI[place] += _masked(of_own_NI, mask_NI, kept, down_RI.dtype).view_as(of_x_BTI[place])
        return of_x_BTI, None, None, None, *of_weights


def _with_dropout(x_bti: Tensor, part: AdapterPart) -> tuple[Tensor, Tensor | None]:
    """Returns the adapter's input [N, I], and which of its numbers dropout has kept."""
    if not part.dropout:
        return _flat(x_bti), None
    with part.drawing():
        # In the adapter's own precision, as peft has it, and contiguous: on that depends which number is drawn where.
        own_bti, mask_bti = torch.native_dropout(x_bti.to(part.down_RI.dtype).contiguous(), part.dropout, True)
    return _flat(own_bti).to(x_bti.dtype), _flat(mask_bti)


def _masked(numbers_NI: Tensor, mask_NI: Tensor, kept: float, dtype: torch.dtype) -> Tensor:
    """What dropout makes of these numbers, computed in this precision. `kept` is the share that it keeps."""
    return numbers_NI.to(dtype).mul(mask_NI).mul_(1.0 / kept).to(numbers_NI.dtype)


def _flat(part_bti: Tensor) -> Tensor:
    return part_bti.reshape(-1, part_bti.shape[-1])


def _add_product(total_bto: Tensor, left_NR: Tensor, right_RO: Tensor) -> None:
    """Adds a product to a view in place, rounded once."""
    flat_NO = _flat(total_bto).addmm_(left_NR, right_RO)
    if not total_bto.is_contiguous():  # then that was a copy
        total_bto.copy_(flat_NO.view_as(total_bto))
