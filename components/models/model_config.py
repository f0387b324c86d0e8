"""config.json of a model from outside: its kinds and sizes are checked before transformers builds anything from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from components.errors import InputError
from components.storage.foreign_files import explain_foreign, read_object

CONFIG_FILE = "config.json"
# The largest that a model of some family could mean, some powers of two above those that exist.
LARGEST = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), 2**12),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "head_dim"), 2**16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"), 2**16),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model"), 2**20),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size"), 2**24),
    "vocab_size": 2**27,
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 2**31),
}
POSITIVE = ("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "d_model", "vocab_size")
KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
MAX_SHOWN = 60  # letters of a value


def read_model_config(directory: Path) -> PreTrainedConfig:
    """Returns the configuration as transformers' own class. Raises InputError if there is none, or it is none."""
    given = check_model_config(directory)
    own_code = "it comes with code of its own, which is never run; " if "auto_map" in given else ""
    with explain_foreign(directory / CONFIG_FILE, f"{own_code}transformers takes it for no model's"):
        return AutoConfig.from_pretrained(str(directory), trust_remote_code=False)


def check_model_config(directory: Path) -> dict[str, Any]:
    """Returns config.json as it is written. Raises InputError with everything in it that no model can have."""
    file = directory / CONFIG_FILE
    config = read_object(file)
    problems = [*_odd_texts(config), *_odd_sizes(config)]
    for key, part in config.items():
        if isinstance(part, Mapping) and key.endswith("_config"):
            problems += _odd_sizes(part, f"{key}.")
    if problems:
        raise InputError(f"{file}: {'; '.join(problems)}; take the file from the model's release")
    return config


def _odd_texts(config: Mapping[str, Any]) -> Iterator[str]:
    if not isinstance(config.get("model_type", ""), str):
        yield f"model_type must be the name of a family, not {_shown(config['model_type'])}"
    for key in KERNELS:
        if "/" in str(config.get(key) or ""):
            yield f"{key} {_shown(config[key])} names code on the hub, which is never run"


def _odd_sizes(config: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """Sizes are whole numbers. Some families have one for each layer, or null for one that follows from others."""
    for key, largest in LARGEST.items():
        value = config.get(key)
        least = 1 if key in POSITIVE else 0
        for size in value if isinstance(value, list) else [value]:
            if size is not None and not (_is_whole(size) and least <= size <= largest):
                yield f"{before}{key} must be a whole number from {least} to {largest}, not {_shown(size)}"
                break


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
