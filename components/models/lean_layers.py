"""Norms and gated layers that compute what transformers' do in fewer passes, and keep less for the backward pass.

Most models of transformers have the same classes under names of their own: LlamaRMSNorm, and LlamaMLP or GlmMLP. Left to
autograd, the norm keeps two float32 matrices of its input's size, and the gated layer one more matrix of its widest size.

N tokens, H hidden size, I the gated layer's inner size.
"""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import SiLUActivation
from transformers.models.glm.modeling_glm import GlmMLP
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

SILU = (nn.SiLU, SiLUActivation)


def make_layers_lean(model: nn.Module) -> None:
    """Lets a model's norms and gated layers compute so. A second call changes nothing.

    The outputs are the same bits. Gradients differ from autograd's as sums in another order do.
    """
    for module in model.modules():
        own: Any = type(module)
        if _computes_like(module, LlamaRMSNorm):
            module.__class__ = _lean(own, _LeanNorm)
        elif _computes_like(module, LlamaMLP) and isinstance(module.act_fn, SILU):
            module.__class__ = _lean(own, _LeanGated)
        elif _computes_like(module, GlmMLP) and isinstance(module.activation_fn, SILU):
            module.__class__ = _lean(own, _LeanGatedHalves)


def _computes_like(module: nn.Module, known: type[nn.Module]) -> bool:
    """Whether its class has the known one's code, whatever it is called."""
    own, other = type(module).forward, known.forward
    if not isinstance(own, FunctionType):
        return False
    return all(
        getattr(own.__code__, part) == getattr(other.__code__, part) for part in ("co_code", "co_names", "co_consts")
    )


@cache
def _lean(original: type[nn.Module], part: type) -> type[nn.Module]:
    """A class of the original's name, which counts as one of it."""
    return type(original.__name__, (part, original), {"__module__": original.__module__})


class _LeanNorm:
    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        applied = _RmsNorm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
        return cast(Tensor, applied)


class _LeanGated:
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        inner = _Gated.apply(self.gate_proj(x), self.up_proj(x))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.down_proj(inner))


class _LeanGatedHalves:
    gate_up_proj: nn.Module
    down_proj: nn.Module

    def forward(self, hidden_states: Tensor) -> Tensor:
        inner = _GatedHalves.apply(self.gate_up_proj(hidden_states))  # type: ignore[no-untyped-call]
        return cast(Tensor, self.down_proj(inner))


class _RmsNorm(torch.autograd.Function):
    """weight x (x / root mean square of x), the quotient in float32 and rounded to the precision of x."""

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        x32_NH = x_NH.float()
        inverse_N1 = torch.rsqrt(x32_NH.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x_NH, weight_H, inverse_N1)
        return weight_H * (x32_NH * inverse_N1).to(x_NH.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NH: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_NH, weight_H, inverse_N1 = ctx.saved_tensors
        normed_NH = x_NH.float() * inverse_N1
        of_weight_H = of_x_NH = None
        if ctx.needs_input_grad[1]:
            of_weight_NH = gradient_NH * normed_NH.to(x_NH.dtype)
            of_weight_H = of_weight_NH.flatten(0, -2).sum(0).to(weight_H.dtype)
        if ctx.needs_input_grad[0]:
            slope_NH = (gradient_NH * weight_H).float()
            along_N1 = (slope_NH * normed_NH).mean(-1, keepdim=True)
            of_x_NH = slope_NH.sub_(normed_NH.mul_(along_N1)).mul_(inverse_N1).to(x_NH.dtype)
        return of_x_NH, of_weight_H, None


class _Gated(torch.autograd.Function):
    """silu(gate) x up. The first factor is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate_NI: Tensor, up_NI: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NI, up_NI)
        return _gated(gate_NI, up_NI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NI: Tensor) -> tuple[Tensor, Tensor]:
        gate_NI, up_NI = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient_NI * up_NI, gate_NI), _gated(gate_NI, gradient_NI)


class _GatedHalves(torch.autograd.Function):
    """The same, where one layer makes gate and up side by side: [N, 2 x I]."""

    @staticmethod
    def forward(ctx: Any, both_NJ: Tensor) -> Tensor:
        ctx.save_for_backward(both_NJ)
        gate_NI, up_NI = both_NJ.chunk(2, dim=-1)
        return _gated(gate_NI, up_NI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NI: Tensor) -> Tensor:
        (both_NJ,) = ctx.saved_tensors
        gate_NI, up_NI = both_NJ.chunk(2, dim=-1)
        of_both_NJ = torch.empty_like(both_NJ)
        of_gate_NI, of_up_NI = of_both_NJ.chunk(2, dim=-1)
        of_up_NI.copy_(_gated(gate_NI, gradient_NI))
        of_gate_NI.copy_(torch.ops.aten.silu_backward(gradient_NI * up_NI, gate_NI))
        return of_both_NJ


def _gated(gate_NI: Tensor, up_NI: Tensor) -> Tensor:
    return F.silu(gate_NI).mul_(up_NI)
