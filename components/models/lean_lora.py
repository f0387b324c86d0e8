"""A linear layer with a LoRA adapter, computed in fewer passes over its output than peft's own layer makes.

peft adds the adapter's output to the layer's: it scales one matrix of all outputs and adds up two, and as much is done again
in the backward pass. Here the adapter's narrow middle is scaled, and both products are added up where they are made.

N tokens, I inputs and O outputs of the layer, R the rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


def make_lean(model: nn.Module) -> None:
    """Lets plain linear layers with adapters compute so. In all else (names, states, merging) they remain peft's.

    Only, hooks on the layer below an adapter, or on its halves, are not called.
    """
    for module in model.modules():
        if type(module) is Linear and type(cast(Any, module).get_base_layer()) is nn.Linear:
            module.__class__ = LeanLoraLinear


class LeanLoraLinear(Linear):  # type: ignore[misc]
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's where there is one adapter in use, no dropout, and one precision; anything else is peft's own."""
        dtype = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        name = self._plain_adapter()
        base = self.get_base_layer()
        if args or kwargs or name is None or base.weight.dtype != dtype:
            return cast(Tensor, super().forward(x, *args, **kwargs))
        x_NI = x.reshape(-1, x.shape[-1]).to(dtype)
        down_RI, up_OR = self.lora_A[name].weight, self.lora_B[name].weight
        given = (x_NI, base.weight, base.bias, down_RI, up_OR, self.scaling[name])
        found_NO = _AdaptedLinear.apply(*given)  # type: ignore[no-untyped-call]
        return cast(Tensor, found_NO).view(*x.shape[:-1], base.out_features)

    def _plain_adapter(self) -> str | None:
        names = self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1:
            return None
        (name,) = names
        is_plain = (
            name in self.lora_A
            and name not in self.lora_variant
            and isinstance(self.lora_dropout[name], nn.Identity)
            and self.lora_B[name].bias is None
        )
        return name if is_plain else None


class _AdaptedLinear(torch.autograd.Function):
    """x W' + bias + scaling (x down') up'. The layer's own weight and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        with torch.autocast(x_NI.device.type, enabled=False):
            middle_NR = (x_NI @ down_RI.to(x_NI.dtype).T).mul_(scaling)
            found_NO = F.linear(x_NI, weight_OI, bias_O).addmm_(middle_NR, up_OR.to(x_NI.dtype).T)
        ctx.save_for_backward(x_NI, weight_OI, down_RI, up_OR, middle_NR)
        ctx.scaling = scaling
        return found_NO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NO,) = gradients
        x_NI, weight_OI, down_RI, up_OR, middle_NR = ctx.saved_tensors
        of_middle_NR = (gradient_NO @ up_OR.to(x_NI.dtype)).mul_(ctx.scaling)
        of_x_NI = None
        if ctx.needs_input_grad[0]:
            of_x_NI = (gradient_NO @ weight_OI).addmm_(of_middle_NR, down_RI.to(x_NI.dtype))
        of_down_RI = (of_middle_NR.T @ x_NI).to(down_RI.dtype)
        of_up_OR = (gradient_NO.T @ middle_NR).to(up_OR.dtype)
        return of_x_NI, None, None, of_down_RI, of_up_OR, None
