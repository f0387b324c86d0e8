"""Converts a ChatGLM3 config.json to the GlmConfig of the same model, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import GenerationConfig, GlmConfig

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.models.chatglm.detect import NUMBERS, TOKEN_ID_DEFAULTS, check_chatglm3, read_config
from components.storage.foreign_files import explain_foreign

ROPE_BASE = 10000.0
ROTARY_SHARE = 0.5  # share of each head that is rotated; a constant without a name in the original code
BEGIN_ID = 1


def glm_config(directory: Path) -> GlmConfig:
    """Raises InputError if the directory is another model, or one that Glm cannot represent exactly; see detect.py."""
    original = read_config(directory)
    check_chatglm3(directory, original)
    heads = original["num_attention_heads"]
    with explain_foreign(directory / "config.json", "no ChatGLM3 that Glm can hold"):
        return _as_glm(original, heads)


def _as_glm(original: dict[str, Any], heads: int) -> GlmConfig:
    return GlmConfig(
        vocab_size=original["padded_vocab_size"],
        hidden_size=original["hidden_size"],
        intermediate_size=original["ffn_hidden_size"],
        num_hidden_layers=original["num_layers"],
        num_attention_heads=heads,
        num_key_value_heads=original["multi_query_group_num"] if original.get("multi_query_attention") else heads,
        head_dim=original["kv_channels"],
        rms_norm_eps=original.get("layernorm_epsilon", NUMBERS["layernorm_epsilon"][0]),
        attention_bias=True,
        attention_dropout=original.get("attention_dropout", NUMBERS["attention_dropout"][0]),
        max_position_embeddings=original["seq_length"],
        rope_parameters={
            "rope_type": "default",
            "rope_theta": ROPE_BASE * original.get("rope_ratio", NUMBERS["rope_ratio"][0]),
            "partial_rotary_factor": ROTARY_SHARE,
        },
        tie_word_embeddings=False,
        eos_token_id=_value_or(original.get("eos_token_id"), TOKEN_ID_DEFAULTS["eos_token_id"]),
        pad_token_id=_value_or(original.get("pad_token_id"), TOKEN_ID_DEFAULTS["pad_token_id"]),
        bos_token_id=BEGIN_ID,
        dtype=original.get("torch_dtype", original.get("dtype", "float16")),
        architectures=["GlmForCausalLM"],
    )


def original_config(config: GlmConfig, like: dict[str, Any]) -> dict[str, Any]:
    """Returns `like`, the config.json of the base, with the sizes of `config` and the names by which servers detect it.

    llama.cpp's converter uses _name_or_path, SGLang and vLLM the architecture.
    """
    rope_ratio = config.rope_parameters["rope_theta"] / ROPE_BASE
    return {
        **BASIC,
        **like,
        "_name_or_path": "THUDM/chatglm3-6b",
        "model_type": "chatglm",
        "architectures": ["ChatGLMModel"],
        "padded_vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "multi_query_attention": config.num_key_value_heads != config.num_attention_heads,
        "multi_query_group_num": config.num_key_value_heads,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "attention_dropout": config.attention_dropout,
        "seq_length": config.max_position_embeddings,
        **({} if rope_ratio == 1 and "rope_ratio" not in like else {"rope_ratio": _integer_if_whole(rope_ratio)}),
    }


def generation_config(directory: Path) -> GenerationConfig:
    """Returns a configuration in which generation stops at the end of an answer, or at the next role."""
    chat_format = load_chat_format(load_tokenizer(directory), "chatglm3")
    return GenerationConfig(
        bos_token_id=BEGIN_ID, pad_token_id=chat_format.pad_token_id, eos_token_id=list(chat_format.stop_token_ids)
    )


# The settings of every Glm model, under the original's keys.
BASIC: dict[str, Any] = {
    "auto_map": {
        "AutoConfig": "configuration_chatglm.ChatGLMConfig",
        "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForSeq2SeqLM": "modeling_chatglm.ChatGLMForConditionalGeneration",
        "AutoModelForSequenceClassification": "modeling_chatglm.ChatGLMForSequenceClassification",
    },
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "apply_query_key_layer_scaling": True,
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "fp32_residual_connection": False,
    "hidden_dropout": 0.0,
    "original_rope": True,
    "post_layer_norm": True,
    "rmsnorm": True,
    "use_cache": True,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float16",
    "transformers_version": "4.30.2",
}


def _value_or(value: int | None, default: int) -> int:
    return default if value is None else value


def _integer_if_whole(ratio: float) -> float:
    return int(ratio) if ratio == int(ratio) else ratio
