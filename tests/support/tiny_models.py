"""A tiny base model, its answer to a row of tokens, and adapters on it that have moved."""

import torch

from components.experiment.spec import ModelSpec
from components.models.base.load_base import load_base_model

TOKENS = torch.arange(12)[None]


def base_model(directory, quantize=None):
    torch.set_num_threads(1)
    return load_base_model(ModelSpec(path=str(directory)), quantize=quantize).eval()


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=TOKENS, use_cache=False).logits


def trained_a_little(model):
    """Adapters moved away from where they begin, by hand: every weight gets a different value."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model
