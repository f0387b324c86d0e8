"""LoRA as peft makes it, with the same weights for all contestants."""

from __future__ import annotations

from typing import TypeVar

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from components.experiment.spec import LoraMethod
from components.models.target_modules import lora_config

Model = TypeVar("Model", bound=nn.Module)
DEVIATION = 0.02


def with_adapters(base: PreTrainedModel, method: LoraMethod, *, in_base_dtype: bool = False) -> PeftModel:
    """As peft's documentation has it: adapters in float32, or in the base's dtype."""
    adapted: PeftModel = get_peft_model(base, lora_config(base, method), autocast_adapter_dtype=not in_base_dtype)
    return settle(adapted)


def settle(model: Model) -> Model:
    """Gives the adapters random weights, equal for equal models, B too: where B is zero, A has no gradient."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(DEVIATION * torch.randn(parameter.shape, generator=generator))
    return model
