"""Models without weights: their modules and shapes on the meta device, and other tensors in the place of those."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def empty_model(config: PreTrainedConfig, *, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Takes no memory. Raises ValueError if transformers has no causal LM for this configuration."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )
    return cast(PreTrainedModel, model)


def replace_tensors(model: nn.Module, make: Callable[[Tensor], Tensor]) -> None:
    """Every parameter and buffer becomes what `make` makes of it; what was shared between modules stays shared."""
    made: dict[int, tuple[Tensor, Tensor]] = {}  # the old one, too: while it lives nobody else has its id
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
