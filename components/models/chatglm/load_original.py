"""Loads an original directory into a model in memory, tensor by tensor."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import nn
from transformers import GlmForCausalLM, PreTrainedModel
from transformers.models.glm.modeling_glm import GlmRotaryEmbedding

from components.conversations.tokenizers.chatglm3 import MODEL_FILE
from components.models.chatglm.config import generation_config, glm_config
from components.models.chatglm.read_weights import glm_weights
from components.models.chatglm.weight_files import shards_of
from components.storage.foreign_files import explain_foreign


def load_original(
    directory: Path, *, dtype: torch.dtype, attention: str, device: torch.device | str = "cpu"
) -> PreTrainedModel:
    """Returns the model in eval mode. Beside the model, a few MB of its files are in memory (one shard of an old .bin).

    Raises InputError if it is not a ChatGLM3, or if weights are missing or do not have the shapes of its config.
    """
    config = glm_config(directory)
    with torch.device("meta"):
        model = GlmForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
    # It is computed, not loaded, and float32 for all dtypes of weights.
    model.model.rotary_emb = GlmRotaryEmbedding(config).to(device)
    with explain_foreign(directory):
        for _, name, tensor in glm_weights(shards_of(directory), config):
            module, _, leaf = name.rpartition(".")
            copied = torch.empty(tensor.shape, dtype=dtype, device=device)
            tensor.copy_into(copied)
            setattr(model.get_submodule(module), leaf, nn.Parameter(copied))
    if (directory / MODEL_FILE).is_file():
        model.generation_config = generation_config(directory)
    return cast(PreTrainedModel, model.eval())
