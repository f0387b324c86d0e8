"""Tiny configurations of many families, by the name of the family.

Windows and chunks are shorter than the rows of the tests, so that they matter, and weights so large that layers do. There
are more rows of embeddings than the letter tokenizer has tokens, as in many releases.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.models.load_trained import LoadedModel
from tests.support.toy import save_letter_tokenizer

SIZES = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT = {
    "vocab_size": 128,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT = {**GPT, "pad_token_id": 0}
WINDOW, SPREAD = 8, 0.1
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
MAMBA2 = {**MAMBA2, "mamba_expand": 2}
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
HYBRID_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}

WRITTEN: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": WINDOW},
    "ministral": {**GROUPED, **ALTERNATING},
    "qwen2": {**GROUPED, **ALTERNATING, "use_sliding_window": True},
    "qwen2_moe": {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": GROUPED,
    "qwen3_moe": {**GROUPED, **EXPERTS},
    "qwen3_next": {**GROUPED, **EXPERTS, **DELTA, "shared_expert_intermediate_size": 16},
    "qwen3_5_text": {**GROUPED, **DELTA},
    "gemma": GROUPED,
    "gemma2": {**GROUPED, **ALTERNATING},
    "gemma3_text": {**GROUPED, **ALTERNATING},
    "gemma3": {"text_config": {**GROUPED, **ALTERNATING}, "vision_config": VISION, "mm_tokens_per_image": 4},
    "gemma3n_text": {
        **GROUPED, **ALTERNATING, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128, "laurel_rank": 4,
        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0], "altup_num_inputs": 2,
        "pad_token_id": 127,  # a random model has nothing in the row of its own pad token, of which this family takes a root
    },
    "gemma4_text": {
        **GROUPED, **ALTERNATING, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128, "global_head_dim": 8,
        "num_kv_shared_layers": 0,
    },
    "phi": SIZES,
    "phi3": {**GROUPED, "sliding_window": WINDOW},
    "phimoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "glm": GROUPED,
    "glm4": GROUPED,
    "glm4_moe": {
        **GROUPED, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
    },
    "gpt2": GPT,
    "gpt_neo": {
        "vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "window_size": WINDOW,
        "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2,
    },
    "gpt_neox": SIZES,
    "gptj": {**GPT, "rotary_dim": 4},
    "gpt_bigcode": GPT,
    "starcoder2": {**GROUPED, "sliding_window": WINDOW},
    "codegen": {**GPT, "rotary_dim": 4},
    "opt": {**SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"vocab_size": 128, "hidden_size": 32, "n_layer": 2, "n_head": 4, "eos_token_id": 2, "pad_token_id": 0},
    "falcon": {**SIZES, "alibi": False, "multi_query": True, "new_decoder_architecture": False},
    "falcon with alibi": {**SIZES, "alibi": True, "multi_query": False, "new_decoder_architecture": False},
    "mpt": {"vocab_size": 128, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256, "eos_token_id": 2},
    "mixtral": {**GROUPED, "num_local_experts": 4},
    "deepseek_v2": {**SIZES, **LATENT},
    "deepseek_v3": {**SIZES, **LATENT},
    "gpt_oss": {**GROUPED, **ALTERNATING, "num_local_experts": 4, "num_experts_per_tok": 2, "rope_scaling": None},
    "llama4_text": {
        **GROUPED, "attention_chunk_size": WINDOW, "layer_types": ["chunked_attention", "full_attention"],
        "num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 64, "no_rope_layers": [1, 0],
    },
    "cohere": GROUPED,
    "cohere2": {**GROUPED, **ALTERNATING},
    "granite": {**GROUPED, "logits_scaling": 8.0},
    "granitemoe": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": {
        **GROUPED, **MAMBA2, "num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 32,
        "layer_types": ["mamba", "attention"],
    },
    "olmo": GROUPED,
    "olmo2": GROUPED,
    "olmo3": {**GROUPED, **ALTERNATING},
    "olmoe": {**GROUPED, "num_experts": 4, "num_experts_per_tok": 2},
    "stablelm": GROUPED,
    "mamba": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mamba2": {
        "vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8,
        "n_groups": 1, "chunk_size": 8,
    },
    "falcon_h1": {**GROUPED, **MAMBA2, "mamba_d_ssm": 64},
    "jamba": {
        **GROUPED, **HYBRID_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False,
    },
    "bamba": {**GROUPED, **MAMBA2, "attn_layer_indices": [1]},
    "recurrent_gemma": {
        **GROUPED, "lru_width": 32, "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
    },
    "rwkv": {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32},
    "lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
    "smollm3": {**GROUPED, "no_rope_layers": [1, 0]},
    "ernie4_5": GROUPED,
    "ernie4_5_moe": {
        **GROUPED, "moe_intermediate_size": 16, "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
    "exaone4": {**GROUPED, **ALTERNATING},
    "nemotron": GROUPED,
    "minimax": {
        **GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2, "block_size": 8,
        "layer_types": ["linear_attention", "full_attention"],
    },
    "persimmon": SIZES,
    "hunyuan_v1_dense": GROUPED,
    "seed_oss": GROUPED,
    "arcee": GROUPED,
    "helium": GROUPED,
    "dots1": {
        **GROUPED, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1,
        "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
    },
    "apertus": GROUPED,
}  # fmt: skip


FAMILIES = tuple(WRITTEN)
ALWAYS = ("llama", "qwen3", "gemma3_text", "gpt2", "qwen3_moe", "mamba")  # the others are behind the marker `families`


def config_of(family):
    config = AutoConfig.for_model(family.split()[0], **WRITTEN[family])
    text = config.get_text_config()
    text.initializer_range = SPREAD
    for name in vars(text):
        if any(noise in name for noise in ("dropout", "pdrop", "_drop", "jitter")):
            setattr(text, name, 0.0)
    return config


def family_model(family, **settings):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config_of(family), **settings)
    for weight in model.parameters():
        if not weight.any():  # biases, and scales behind which nothing would be seen
            torch.nn.init.normal_(weight, std=SPREAD)
    return model


def family_directory(directory, family, chat_template=None):
    """A directory as it would be published: weights, configuration, tokenizer."""
    family_model(family).save_pretrained(directory)
    save_letter_tokenizer(directory, chat_template)
    return directory


def loaded_family(name, folder) -> LoadedModel:
    """A model of the family with the letter tokenizer, which is written to `folder`: what load_trained returns."""
    save_letter_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    return LoadedModel(
        model=family_model(name).eval(),
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, "auto"),
        device=torch.device("cpu"),
        attention="sdpa",
    )
