"""The shapes of real models, and small ones of the same families, with random weights that are made on the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel

from components.models.dtypes import DTYPES
from components.models.lean_layers import make_layers_lean
from experiments.benchmarks.gpu_kit.settings import Settings


def _llama(**sizes: int | bool) -> LlamaConfig:
    return LlamaConfig(max_position_embeddings=8192, pad_token_id=0, bos_token_id=1, eos_token_id=2, **sizes)


def _glm(**sizes: int) -> GlmConfig:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return GlmConfig(
        max_position_embeddings=8192, rms_norm_eps=1e-5, attention_bias=True, rope_parameters=rope, **tokens, **sizes
    )


REAL = {
    "llama-1b": lambda: _llama(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, tie_word_embeddings=True,
    ),
    "llama-3b": lambda: _llama(
        vocab_size=128256, hidden_size=3072, intermediate_size=8192, num_hidden_layers=28, num_attention_heads=24,
        num_key_value_heads=8, tie_word_embeddings=True,
    ),
    "chatglm3-6b": lambda: _glm(
        vocab_size=65024, hidden_size=4096, intermediate_size=13696, num_hidden_layers=28, num_attention_heads=32,
        num_key_value_heads=2, head_dim=128,
    ),
    "llama2-7b": lambda: _llama(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32,
    ),
}  # fmt: skip
TINY = {
    "llama-1b": lambda: _llama(
        vocab_size=512, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "llama-3b": lambda: _llama(
        vocab_size=512, hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "chatglm3-6b": lambda: _glm(
        vocab_size=520, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    ),
    "llama2-7b": lambda: _llama(
        vocab_size=512, hidden_size=96, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4,
    ),
}  # fmt: skip


def config_of(name: str, settings: Settings) -> PreTrainedConfig:
    """The configuration of REAL's name, or of its small namesake."""
    return cast(PreTrainedConfig, (TINY if settings.tiny else REAL)[name]())


def few_layers(name: str, settings: Settings) -> PreTrainedConfig:
    """The layers of REAL's name, but only one or two of them, and a small vocabulary; or its small namesake.

    A step of it in float32 takes the CPU a second or two.
    """
    config = config_of(name, settings)
    if not settings.tiny:
        config.num_hidden_layers = 2 if config.hidden_size <= 2048 else 1
        config.vocab_size = 4096
    return config


def random_model(
    config: PreTrainedConfig,
    device: torch.device,
    *,
    dtype: str = "fp32",
    attention: str = "sdpa",
    quantize: str | None = None,
    seed: int = 0,
    weights: Mapping[str, Tensor] | None = None,
) -> PreTrainedModel:
    """Returns a model with random weights, made on the device, in eval mode and without a cache.

    Equal seeds give equal weights on one kind of device only: to compare two devices, copy.

    Args:
        quantize: nf4 or int8, by bitsandbytes, as transformers quantizes what it loads.
        weights: the state of another such model, copied before anything is quantized.
    """
    torch.manual_seed(seed)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            config, dtype=DTYPES[dtype], attn_implementation=attention, trust_remote_code=False
        )
    model.config.use_cache = False
    if weights is not None:
        model.load_state_dict(weights)
    if quantize is not None:
        _quantize(model, quantize, DTYPES[dtype], device)
    make_layers_lean(model)  # as what is loaded computes
    return cast(PreTrainedModel, model.eval())


def _quantize(model: PreTrainedModel, quantize: str, dtype: torch.dtype, device: torch.device) -> None:
    """Replaces the linear layers, one at a time, as transformers would: all but the head."""
    from bitsandbytes import nn as packed

    for name, layer in list(model.named_modules()):
        if type(layer) is not nn.Linear or layer is model.get_output_embeddings():
            continue
        sizes = layer.in_features, layer.out_features, layer.bias is not None
        if quantize == "nf4":
            new = packed.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
            new.weight = packed.Params4bit(
                layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True
            )
            new.support_avx512bf16_for_cpu = False  # components/models/base/load_base.py says why
        else:
            new = packed.Linear8bitLt(*sizes, has_fp16_weights=False)
            # It quantizes what comes from the CPU.
            new.weight = packed.Int8Params(layer.weight.data.cpu(), requires_grad=False, has_fp16_weights=False)
        new.bias = layer.bias
        model.set_submodule(name, new.to(device))  # moving it quantizes it
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = quantize == "nf4", quantize == "int8"
    model.is_quantized = True
