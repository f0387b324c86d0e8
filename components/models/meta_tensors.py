"""Models without weights: their modules and shapes on the meta device, and the replacement of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def empty_model(config: PreTrainedConfig, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Builds a model on the meta device, without memory. Raises ValueError if transformers has no such causal LM."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    return cast(PreTrainedModel, model)


def count_parameters(config: PreTrainedConfig) -> int:
    """Returns how many weights a model has, all experts of a mixture included."""
    model = empty_model(config, dtype=torch.float32, attention="eager")
    return sum(weight.numel() for weight in model.parameters())


def replace_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Replaces every parameter and buffer by `make(tensor)`. Tensors that modules share stay shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old tensor is kept too: its id cannot be reused while it exists
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = make(tensor)
                    if isinstance(tensor, nn.Parameter):
                        new = nn.Parameter(new, requires_grad=tensor.requires_grad)
                    made[id(tensor)] = new, tensor
                tensors[name] = made[id(tensor)][0]  # type: ignore[assignment]
