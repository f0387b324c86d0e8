"""Converts weights between the original's names and Glm's, one by one; query_key_value is Glm's q, k and v together."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import GlmConfig

from components.errors import InputError
from components.models.chatglm.config import ROPE_BASE
from components.models.chatglm.weight_files import StoredTensor

LAYER = re.compile(r"transformer\.encoder\.layers\.(\d+)\.(.+)")
GLM_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
TOP = {
    "transformer.embedding.word_embeddings": "model.embed_tokens",
    "transformer.encoder.final_layernorm": "model.norm",
    "transformer.output_layer": "lm_head",
}
IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "post_attention_layernorm": "post_attention_layernorm",
    "self_attention.dense": "self_attn.o_proj",
    "mlp.dense_h_to_4h": "mlp.gate_up_proj",
    "mlp.dense_4h_to_h": "mlp.down_proj",
}
FUSED = "self_attention.query_key_value"
SPLIT = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
FREQUENCIES = "transformer.rotary_pos_emb.inv_freq"
Stored = TypeVar("Stored", Tensor, StoredTensor)


@dataclass(frozen=True, slots=True, kw_only=True)
class QkvRows:
    """The numbers of rows of q, k and v in query_key_value."""

    q: int
    kv: int

    @classmethod
    def of(cls, config: GlmConfig) -> QkvRows:
        return cls(q=config.num_attention_heads * config.head_dim, kv=config.num_key_value_heads * config.head_dim)

    def split(self, fused: Stored) -> tuple[Stored, Stored, Stored]:
        """Returns views of q, k and v. Raises InputError if the number of rows differs."""
        if len(fused) != self.q + 2 * self.kv:
            raise InputError(f"query_key_value has {len(fused)} rows, and must have {self.q} + 2 x {self.kv}")
        return fused[: self.q], fused[self.q : self.q + self.kv], fused[self.q + self.kv :]


def glm_modules(original: str) -> tuple[str, ...]:
    """Returns Glm's modules for one of the original's: three for query_key_value, else one. Raises InputError if unknown."""
    if original in TOP:
        return (TOP[original],)
    if match := LAYER.fullmatch(original):
        layer, name = match.groups()
        if name == FUSED:
            return tuple(f"model.layers.{layer}.{part}" for part in SPLIT)
        if name in IN_LAYER:
            return (f"model.layers.{layer}.{IN_LAYER[name]}",)
    raise InputError(f"{original}: no part of a ChatGLM3 model")


def original_module(glm: str) -> str:
    """Returns the original's module for one of Glm's; q, k and v have the same one. Raises InputError if unknown."""
    for original, name in TOP.items():
        if glm == name:
            return original
    if match := GLM_LAYER.fullmatch(glm):
        layer, name = match.groups()
        if name in SPLIT:
            return f"transformer.encoder.layers.{layer}.{FUSED}"
        for original, glm_name in IN_LAYER.items():
            if name == glm_name:
                return f"transformer.encoder.layers.{layer}.{original}"
    raise InputError(f"{glm}: no part of a Glm model")


def glm_tensors(key: str, tensor: Stored, rows: QkvRows) -> Iterator[tuple[str, Stored]]:
    """Yields Glm's weights for one of the original's, as views. Raises InputError for a key that no ChatGLM3 has."""
    if key == FREQUENCIES:  # computed, not learned
        return
    if "prefix_encoder" in key:
        raise InputError(f"{key}: part of a P-tuning checkpoint, which is no model; name the model it was trained on")
    if key.endswith("weight_scale") or tensor.dtype == torch.int8:
        raise InputError(f"{key}: weights quantized by ChatGLM's own code; take the 16-bit release")
    module, _, kind = key.rpartition(".")
    names = glm_modules(module)
    parts = rows.split(tensor) if len(names) > 1 else (tensor,)
    for name, part in zip(names, parts, strict=True):
        yield f"{name}.{kind}", part


def original_tensors(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yields the original's weights in the order of Glm's. All of q, k and v must be present."""
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        key = f"{original_module(module)}.{kind}"
        match = GLM_LAYER.fullmatch(module)
        if match is None or match[2] not in SPLIT:
            yield key, tensor
        elif match[2] == SPLIT[0]:
            yield key, torch.cat([tensors[f"model.layers.{match[1]}.{part}.{kind}"] for part in SPLIT])


def frequencies(config: GlmConfig) -> Tensor:
    """Returns the buffer that published checkpoints contain; the original code computes it again."""
    rotary = config.head_dim // 2
    powers = torch.arange(0, rotary, 2, dtype=torch.float32) / rotary
    return torch.pow(ROPE_BASE, -powers).half()
