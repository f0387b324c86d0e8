"""A model without its weights: its modules and shapes, exactly, from a configuration alone."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.quantizers.base import get_keys_to_not_convert

from components.experiment.spec import FullMethod, LoraMethod
from components.models.adapters import attach_lora
from components.models.attention_backend import usable_attention
from components.models.base.load_base import Quantize
from components.models.dtypes import DTYPES
from components.models.lean_layers import make_layers_lean
from components.models.meta_tensors import empty_model
from components.models.modality_towers import train_what_text_reaches

# nf4 with doubly quantized scales: 4 bits a weight, 8 for each 64 of them, 32 for each 64 x 256. Each layer has its own
# float32 tables: 16 and 256 values, and the offset of the scales.
NF4_BYTES, NF4_TABLES = 1 / 2 + 1 / 64 + 4 / (64 * 256), 4 * (16 + 256 + 1)
INT8_ROW = 4  # the float32 scale of a row of int8


def meta_model(config: PreTrainedConfig, method: LoraMethod | FullMethod, *, dtype: str, attention: str) -> nn.Module:
    """The model that ReusableBase prepares for this method, on the meta device: no memory, and nothing to compute.

    Raises ValueError if transformers has no causal LM for this configuration, or target_modules name none of its modules.
    """
    base = empty_model(config, dtype=DTYPES[dtype], attention=attention)
    make_layers_lean(base)
    with torch.device("meta"):
        base.config.use_cache = False
        if isinstance(method, LoraMethod):
            if method.quantize is not None:
                _pack(base, method.quantize, DTYPES[dtype])
            return cast(nn.Module, attach_lora(base, method).train())
    train_what_text_reaches(base)
    return cast(nn.Module, base.train())


def meta_attention(attention: str, config: PreTrainedConfig) -> str:
    """A kind of attention that every machine has. Its modules are the same and keep the same tensors."""
    return attention if attention in ("sdpa", "eager") else usable_attention("auto", config)


class PackedLinear(nn.Linear):
    """Replaces bitsandbytes' quantized layers, which have no version without weights.

    Like theirs it unpacks its weight in the forward and again in the backward pass. Its parameter has the weight's shape,
    but counts as `stored_bytes`.
    """

    def __init__(self, linear: nn.Linear, quantize: str, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.weight = nn.Parameter(torch.empty_like(linear.weight, dtype=torch.uint8), requires_grad=False)
        self.bias = linear.bias
        self.compute_dtype, self.keeps_input = dtype, quantize == "int8"
        weights, rows = self.weight.numel(), linear.out_features
        self.stored_bytes = round(weights * NF4_BYTES) + NF4_TABLES if quantize == "nf4" else weights + INT8_ROW * rows

    def forward(self, input: Tensor) -> Tensor:
        unpacked = input if self.keeps_input else input.to(self.compute_dtype)
        return cast(Tensor, _UnpackedLinear.apply(unpacked, self)).to(input.dtype)  # type: ignore[no-untyped-call]


class _UnpackedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        ctx.save_for_backward(*([input] if layer.keeps_input else []))
        return F.linear(input, _unpack(layer, input), layer.bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] @ _unpack(ctx.layer, gradients[0]), None


def _unpack(layer: PackedLinear, like: Tensor) -> Tensor:
    return torch.empty(layer.weight.shape, dtype=like.dtype, device=like.device)


def _pack(base: PreTrainedModel, quantize: Quantize, dtype: torch.dtype) -> None:
    """Packs the linear layers that transformers would quantize: all but the head and what is tied to it."""
    assert quantize is not None
    kept = set(get_keys_to_not_convert(base))
    for name, module in list(base.named_modules()):
        if type(module) is nn.Linear and name not in kept:
            base.set_submodule(name, PackedLinear(module, quantize, dtype))
