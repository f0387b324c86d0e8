"""Detects what a directory with model_type chatglm is. Five generations share this name; only ChatGLM3 is supported."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from components.conversations.tokenizers.chatglm3 import is_original
from components.errors import InputError
from components.storage.foreign_files import read_object

__all__ = ["check_chatglm3", "is_original", "read_config"]

GLM4_VOCABULARY = 151552
# The original code's defaults of absent keys.
DEFAULTS = {
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "add_qkv_bias": False,
    "apply_residual_connection_post_layernorm": False,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "original_rope": True,
    "tie_word_embeddings": False,
}
REQUIRED = {**DEFAULTS, "add_qkv_bias": True}
SIZES = (
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "num_layers",
    "num_attention_heads",
    "kv_channels",
    "seq_length",
)
MAX_OF_A_SIZE = 2**20  # positions of the longest model of this kind; a larger number in a config.json is a mistake
# The default of an absent key, and the range (ends included) outside of which a model computes NaN or nothing.
NUMBERS = {
    "layernorm_epsilon": (1e-5, 1e-12, 1e-2),
    "rope_ratio": (1, 1e-3, 1e4),
    "attention_dropout": (0.0, 0.0, 0.99),
}
TOKEN_ID_DEFAULTS = {"eos_token_id": 2, "pad_token_id": 0}


def read_config(directory: Path) -> dict[str, Any]:
    return read_object(directory / "config.json")


def check_chatglm3(directory: Path, config: dict[str, Any]) -> None:
    """Raises InputError if it is another model, or one with an architecture that Glm does not have."""
    if other := next(_other_models(directory, config), None):
        raise InputError(f"{directory}: {other}")
    if problems := [*_odd_sizes(config), *_odd_values(config), *_odd_numbers(config)]:
        raise InputError(f"{directory}: no ChatGLM3 that Glm can hold exactly; in config.json {'; '.join(problems)}")


def _other_models(directory: Path, config: dict[str, Any]) -> Iterator[str]:
    names = _names(directory, config)
    if config.get("vision_config") is not None:
        yield "a vision model (GLM-4V: its config has a vision_config); only ChatGLM3's text models are read here"
    if {"position_encoding_2d", "inner_hidden_size", "max_sequence_length"} & config.keys():
        yield "the first ChatGLM-6B, whose architecture no class of transformers has; use ChatGLM3-6B"
    if config.get("padded_vocab_size") == GLM4_VOCABULARY or _matches("glm-?4", names) or _has_many_ends(config):
        yield "GLM-4, not ChatGLM3; take its release for transformers (the hub id that ends in -hf), which loads as it is"
    if _matches("chatglm-?2|codegeex-?2", names) or _has_code_without_roles(directory):
        yield "ChatGLM2, not ChatGLM3: it has no role tokens (<|user|>, <|assistant|>), so no chat format here fits it"
    if config.get("quantization_bit") or config.get("quantization_config"):
        bits = config.get("quantization_bit") or "a few"
        yield (
            f"quantized to {bits} bits (packed weights that nothing but its own code reads); take the 16-bit release,"
            " and let method.quantize: nf4 or int8 do it while loading"
        )
    if config.get("pre_seq_len"):
        yield (
            f"a P-tuning checkpoint (pre_seq_len={config['pre_seq_len']}): a prefix for another model, no model itself;"
            " name the model it was trained on"
        )


def _odd_sizes(config: dict[str, Any]) -> Iterator[str]:
    for key in SIZES:
        if not _is_size(config.get(key)):
            yield f"{key} must be a whole number from 1 to {MAX_OF_A_SIZE}, not {config.get(key)!r}"
    groups, heads = config.get("multi_query_group_num"), config.get("num_attention_heads")
    if config.get("multi_query_attention") and _is_size(heads) and not (_is_size(groups) and heads % groups == 0):
        yield f"multi_query_group_num must divide num_attention_heads={heads}, which {groups!r} does not"


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_OF_A_SIZE


def _odd_numbers(config: dict[str, Any]) -> Iterator[str]:
    for key, (absent, least, most) in NUMBERS.items():
        value = config.get(key, absent)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            yield f"{key} must be a number from {least:g} to {most:g}, not {value!r}"
    rows = config.get("padded_vocab_size")
    for key, token in TOKEN_ID_DEFAULTS.items():
        value = token if config.get(key) is None else config[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0 or (_is_size(rows) and value >= rows):
            yield f"{key} must be the number of a token, below padded_vocab_size={rows!r}, not {value!r}"


def _odd_values(config: dict[str, Any]) -> Iterator[str]:
    for key, wanted in REQUIRED.items():
        value = config.get(key, DEFAULTS[key])
        if value != wanted:
            given = f"is {value!r}" if key in config else f"is absent, which means {value!r}"
            yield f"{key} {given} and must be {wanted!r}"


def _names(directory: Path, config: dict[str, Any]) -> list[str]:
    """Returns the names that its files give to it: the last parts of hub ids."""
    names = [config.get("_name_or_path")]
    tokenizer_config = directory / "tokenizer_config.json"
    if tokenizer_config.is_file():
        names.append(read_object(tokenizer_config).get("name_or_path"))
    return [str(name).rstrip("/").rpartition("/")[2].lower() for name in names if name]


def _matches(pattern: str, names: list[str]) -> bool:
    return any(re.match(pattern, name) for name in names)


def _has_many_ends(config: dict[str, Any]) -> bool:
    """Whether it has several end tokens, as GLM-4; ChatGLM2 and 3 have one."""
    return isinstance(config.get("eos_token_id"), list)


def _has_code_without_roles(directory: Path) -> bool:
    """Whether its tokenizer's code has no roles; only ChatGLM3's has. The code is read as text, and never run."""
    code = directory / "tokenization_chatglm.py"
    return code.is_file() and "<|user|>" not in code.read_text(encoding="utf-8", errors="replace")
