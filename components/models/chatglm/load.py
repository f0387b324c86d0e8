"""An original directory straight into a model in memory: on no device until its weights come, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import GlmForCausalLM, PreTrainedModel
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from components.conversations.tokenizers.chatglm3 import MODEL_FILE
from components.models.chatglm.config import generation_config, glm_config
from components.models.chatglm.state_dict import glm_weights
from components.models.chatglm.weight_files import shards_of


def load_original(
    directory: Path, *, dtype: torch.dtype, attention: str, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """In eval mode. At no time is there more in memory than the model and a few MB of its files (one shard of an old .bin).

    Raises ValueError if it is no ChatGLM3, or its weights are not all there in the shapes that its config says.
    """
    config = glm_config(directory)
    with torch.device("meta"):
        model = GlmForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
    # Computed, not loaded, and float32 whatever the weights are.
    model.model.rotary_emb = GlmRotaryEmbedding(config).to(device)
    for _, name, tensor in glm_weights(shards_of(directory), config):
        module, _, leaf = name.rpartition(".")
        copied = torch.empty(tensor.shape, dtype=dtype, device=device)
        tensor.copy_into(copied)
        setattr(model.get_submodule(module), leaf, nn.Parameter(copied))
    if (directory / MODEL_FILE).is_file():
        model.generation_config = generation_config(directory)
    return cast(PreTrainedModel, model.eval())
