"""A small model of another model's own class: what the class can do is tried on it, in seconds and without its weights.

It has each kind of layer that the model has, few rows of embeddings, few experts, and windows so short that they matter
for a dozen tokens. Only where it would be slow to make, its layers are narrower.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from components.models.meta_tensors import empty_model

BEYOND = 64  # more tokens than are tried
ROWS, WINDOW, LEAST_LAYERS, FEW, FEW_UNITS = 512, 4, 2, 64, 256
QUICK, MADE_QUICKLY, LARGEST = 50_000_000, 200_000_000, 1_000_000_000  # parameters; 8 GB with gradients
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
VOCABULARIES = ("vocab_size", "vocab_size_per_layer_input")
SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
EXPERTS_TAKEN = ("num_experts_per_tok", "moe_k", "n_group")
INNER = (
    "intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "intermediate_size_mlp", "moe_intermediate_size",
    "shared_expert_intermediate_size", "shared_intermediate_size",
)  # fmt: skip
STEPS = ("mamba_chunk_size", "chunk_size")  # of a scan, which fills up what is shorter
DEPTHS = ("num_hidden_layers", "depth")  # of a tower for images or sound


def skeletons(config: PreTrainedConfig, attention: str, *, longest: int) -> Iterator[PreTrainedModel]:
    """Yields small models of the config's class with random weights: the quickest first, then those that it may fail for.

    Yields none if each would be too large. Raises ValueError if the class has no such attention.

    Args:
        longest: tokens of a row. A window that is not shorter hides nothing, neither there nor here.
    """
    short = _shortened(config, attention, longest)
    size = _size(short, attention)
    if size > QUICK:
        for narrow in (_narrower(short, heads=True), _narrower(short, heads=False)):
            if _fits(narrow, attention):
                yield _with_weights(narrow, attention)
    if size <= LARGEST:
        yield _with_weights(short, attention)


def decoder_layers(model: nn.Module) -> nn.ModuleList:
    """Returns the longest list of modules."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda each: sum(weight.numel() for weight in each.parameters()), default=nn.ModuleList())


def _with_weights(config: PreTrainedConfig, attention: str) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    return model.eval()


def _shortened(config: PreTrainedConfig, attention: str, longest: int) -> PreTrainedConfig:
    short = copy.deepcopy(config)
    if hasattr(short, "quantization_config"):
        del short.quantization_config
    text = short.get_text_config()
    _keep_layers(text, _layers_needed(short, attention))
    _limit(text, VOCABULARIES, ROWS)
    for name in SPECIAL:
        if getattr(text, name, None) is not None:
            setattr(text, name, 0)
    for name in WINDOWS:
        if isinstance(window := getattr(text, name, None), int):
            setattr(text, name, min(window, WINDOW) if window < longest else max(window, BEYOND))
    _limit(text, STEPS, 4 * WINDOW)
    taken = max((getattr(text, name, None) or 1 for name in EXPERTS_TAKEN), default=1)
    _limit(text, EXPERTS, 2 * taken)
    if hasattr(text, "initializer_range"):  # a tiny model's layers would change less than is measured
        text.initializer_range = max(text.initializer_range, text.hidden_size**-0.5)
    for tower in _towers(short):
        _limit(tower, DEPTHS, 1)
    return short


def _towers(config: PreTrainedConfig) -> Iterator[Any]:
    text = config.get_text_config()
    for name in config.sub_configs:
        part = getattr(config, name, None)
        if part is not None and part is not text:
            yield part


def _keep_layers(text: Any, count: int) -> None:
    """Cuts the model to its first layers, and every list with an entry for each layer."""
    before = text.num_hidden_layers
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == before:
            setattr(text, name, value[:count])
    text.num_hidden_layers = count
    if shared := getattr(text, "num_kv_shared_layers", None):  # the last ones
        text.num_kv_shared_layers = max(0, count - (before - shared))


def _layers_needed(config: PreTrainedConfig, attention: str) -> int:
    """How many layers, from the first on, have one of each kind."""
    layers = decoder_layers(empty_model(config, dtype=torch.float32, attention=attention))
    kinds = [_kind(layer) for layer in layers]
    needed = 1 + max((kinds.index(kind) for kind in kinds), default=0)
    return min(max(needed, LEAST_LAYERS), int(config.get_text_config().num_hidden_layers))


def _kind(layer: nn.Module) -> tuple[Any, ...]:
    """What tells layers apart: their modules, and what these were set to. Numbers are sizes, of which the kind is enough."""
    return tuple(
        (name, type(module).__name__, *sorted(_settings(module).items())) for name, module in layer.named_modules()
    )


def _settings(module: nn.Module) -> dict[str, str]:
    own = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name: str(value) if isinstance(value, bool | str) else type(value).__name__ for name, value in own.items()}


def _narrower(config: PreTrainedConfig, *, heads: bool) -> PreTrainedConfig:
    """Narrows what is inside of layers; with `heads` the layers too, by having fewer heads of the same size."""
    narrow = copy.deepcopy(config)
    text = narrow.get_text_config()
    _limit(text, INNER, FEW)
    if heads and (all_heads := getattr(text, "num_attention_heads", None)):
        of_keys = getattr(text, "num_key_value_heads", None) or all_heads
        few_of_keys = min(of_keys, 2)
        few = min(all_heads, few_of_keys * (2 if of_keys < all_heads else 1))
        text.hidden_size = text.hidden_size // all_heads * few
        text.num_attention_heads = few
        _limit(text, ["num_key_value_heads"], few_of_keys)
    elif heads and (share := text.hidden_size // FEW_UNITS) > 1:  # a state space
        text.hidden_size //= share
        if getattr(text, "num_heads", None):
            text.num_heads = max(1, text.num_heads // share)
    return narrow


def _limit(config: Any, names: Sequence[str], most: int) -> None:
    """Lowers these numbers, or each of a list of them, where the configuration has them."""
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, list | tuple):
            setattr(config, name, [min(each, most) for each in value])
        elif isinstance(value, int):
            setattr(config, name, min(value, most))


def _size(config: PreTrainedConfig, attention: str) -> int:
    model = empty_model(config, dtype=torch.float32, attention=attention)
    return sum(parameter.numel() for parameter in model.parameters())


def _fits(config: PreTrainedConfig, attention: str) -> bool:
    """Whether there is a model of so changed a configuration, and a small one."""
    try:
        return _size(config, attention) <= MADE_QUICKLY
    except Exception:  # noqa: BLE001 - whatever a class says of sizes that do not go together
        return False
