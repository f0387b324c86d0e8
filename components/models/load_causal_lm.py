"""Loads transformers' causal language models, and checks that every weight comes from their files.

transformers fills missing weights with random numbers, different in each process, and only logs it. Therefore names and
shapes are compared at every load, and also before a search starts, without reading any weight.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from components.errors import InputError
from components.models.model_config import check_model_config, read_model_config
from components.models.shard_names import check_indexes
from components.storage.foreign_files import explain_foreign

MAX_NAMED = 3
ADAPTER_CONFIG = "adapter_config.json"
# Prefixes and parts that wrappers add to the names of weights, and how to save a plain model.
WRAPPERS = {
    "_orig_mod.": "torch.compile has put _orig_mod. before the names; save the model inside (model._orig_mod)",
    "module.": "DistributedDataParallel has put module. before the names; save the model inside (model.module)",
    "_fsdp_wrapped_module.": "FSDP has put _fsdp_wrapped_module. before the names; save its full state dict",
    "base_model.model.": "they are a model with peft's adapters around it; merge them (merge_and_unload) and save that",
}
INSIDE = {
    "lora_": "adapters of peft are among them; merge them (merge_and_unload) and save that",
    ".base_layer.": "they are a model with peft's adapters inside; merge them (merge_and_unload) and save that",
    "_checkpoint_wrapped_module.": "a checkpoint wrapper's name is in them; save the model without it",
}
QUANTIZED = (
    "qweight", "qzeros", "scales", "g_idx", "weight_scale", "weight_scale_inv", "weight_packed", "weight_shape",
    "input_scale", "absmax", "quant_map", "SCB", "weight_format", "_blocks", "_scales", "nested_absmax",
)  # fmt: skip
UNQUANTIZED = "name the unquantized release, and let method.quantize make it small"
# Masks and frequencies that older versions of transformers stored beside the weights, and newer ones compute.
COMPUTED = re.compile(r"(^|\.)((attn|attention)\.(masked_)?bias|attn\.causal_mask|rotary_emb\.inv_freq|position_ids)$")
FAMILY_SHARE = 0.5  # of a model's weights: if more are missing, the files belong to another architecture


def load_causal_lm(directory: Path, *, device: torch.device | str | None = None, **settings: Any) -> PreTrainedModel:
    """Loads by AutoModelForCausalLM.from_pretrained(**settings), and moves the model to `device` if it is given.

    Raises InputError if a weight is missing, unknown, of another shape, or not a finite number; where names or shapes differ,
    before transformers makes room for what config.json promises.
    """
    if "gguf_file" not in settings:
        check_weights(directory)
    model, found = _from_pretrained(directory, settings)
    _check_names(directory, model, found)
    if device is not None:
        model = cast(PreTrainedModel, model.to(cast(Any, device)))
    check_finite(model, directory)
    return model


def check_weights(directory: Path) -> None:
    """Compares names and shapes of the weight files with the model that config.json describes; reads no weight.

    Raises InputError as load_causal_lm does, except for numbers that are not finite.
    """
    # Every class has eager attention, and the weights are the same with any.
    settings = {"dtype": "auto", "device_map": {"": "meta"}, "attn_implementation": "eager"}
    with _without_bar():
        model, found = _from_pretrained(directory, settings)
    _check_names(directory, model, found)


def check_release(directory: Path) -> None:
    """Raises InputError for a directory that transformers would not load as plain weights.

    Refused are quantized releases (also by bitsandbytes: full fine-tuning cannot train them, and no adapter can be merged
    into them), and adapters in the model's directory, for which transformers would load the base that the adapter names.
    """
    if not (directory / "config.json").is_file():
        return
    if (directory / ADAPTER_CONFIG).is_file():
        raise InputError(
            f"{directory}: {ADAPTER_CONFIG} lies beside config.json, so it is an adapter and no model; merge it by"
            " workflows/export.py --base MODEL, or take the adapter's files out"
        )
    method = _quantized_by(check_model_config(directory))
    if method is not None:
        raise InputError(f"{directory}: its weights are quantized ({method}) and cannot be trained on; {UNQUANTIZED}")


def check_finite(model: nn.Module, source: Path) -> None:
    """Raises InputError if a parameter has no values, or one that is not a finite number."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            raise InputError(f"{source}: {name} was left without values")
        if not parameter.is_floating_point() or parameter.numel() == 0:
            continue
        low, high = parameter.detach().aminmax()
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise InputError(f"{source}: {name} holds numbers that are not finite; the file is damaged, or overflowed")


def check_same_weights(what: str, found: Mapping[str, Sequence[int]], wanted: Mapping[str, Sequence[int]]) -> None:
    """Raises InputError, beginning with `what`, if the names or shapes in a file are not those of its target.

    Copying would broadcast: one number would become a whole matrix.
    """
    if odd := sorted(found.keys() ^ wanted.keys()):
        raise InputError(f"{what}; only one side has {', '.join(odd[:5])}")
    other = [name for name in wanted if list(found[name]) != list(wanted[name])]
    if other:
        shapes = (f"{name} is {list(found[name])} and must be {list(wanted[name])}" for name in other[:MAX_NAMED])
        raise InputError(f"{what}; {len(other)} have another shape: {', '.join(shapes)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The faults of a load. mismatched: (name, shape in the file, shape in the model)."""

    missing: list[str]
    unknown: list[str]
    mismatched: list[tuple[str, list[int], list[int]]]


@contextlib.contextmanager
def _without_bar() -> Iterator[None]:
    """Hides transformers' progress bar: nothing is loaded inside."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _from_pretrained(directory: Path, settings: Mapping[str, Any]) -> tuple[PreTrainedModel, _Found]:
    check_indexes(directory)
    if "gguf_file" not in settings:
        read_model_config(directory)
    with explain_foreign(directory, "its weights cannot be made the model that its config.json describes"):
        model, info = _load_with_info(directory, settings)
    mismatched = [(name, list(found), list(wanted)) for name, found, wanted in info["mismatched_keys"]]
    return model, _Found(
        missing=sorted(info["missing_keys"]),
        unknown=sorted(name for name in info["unexpected_keys"] if not COMPUTED.search(name)),
        mismatched=sorted(mismatched),
    )


def _load_with_info(directory: Path, settings: Mapping[str, Any]) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            str(directory),
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # else they are an error without shapes
            **settings,
        )
    except SafetensorError as error:
        raise InputError(f"{directory}: its weights cannot be read ({error}); a file is cut short, or none") from None
    except FileNotFoundError as error:
        raise InputError(f"{directory}: its index names a weight file that is not there: {_line(error)}") from None
    except OSError as error:
        raise InputError(f"{directory}: no weights that can be read: {_line(error)}") from None
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise InputError(f"{directory}: its weights cannot be made the model's: {_line(error)}") from None
    return model, info


def _check_names(directory: Path, model: PreTrainedModel, found: _Found) -> None:
    if not (found.missing or found.unknown or found.mismatched):
        return
    shapes = [f"{name} is {has} and must be {wanted}" for name, has, wanted in found.mismatched]
    parts = [
        f"{len(names)} {what}: {', '.join(names[:MAX_NAMED])}{', ...' if len(names) > MAX_NAMED else ''}"
        for what, names in (
            ("are missing", found.missing),
            ("are not the model's", found.unknown),
            ("have another shape", shapes),
        )
        if names
    ]
    raise InputError(
        f"{directory}: its weights are not those of the {type(model).__name__} that its config.json describes."
        f" {'; '.join(parts)}. Perhaps {_reason(model, found)}"
    )


def _reason(model: PreTrainedModel, found: _Found) -> str:
    """Returns the likely reason, with the way out."""
    for prefix, reason in WRAPPERS.items():
        if any(name.startswith(prefix) for name in found.unknown):
            return reason
    for part, reason in INSIDE.items():
        if any(part in name for name in found.unknown):
            return reason
    if any(name.endswith(QUANTIZED) for name in found.unknown):
        return f"it is a quantized release; {UNQUANTIZED}"
    if found.mismatched:
        return "config.json is another model's; take both from one release"
    if found.unknown and len(found.missing) > FAMILY_SHARE * len(model.state_dict()):
        return f"model_type in config.json ({model.config.model_type}) is another model's; take both from one release"
    if not found.unknown:
        return "a file is missing or cut, or config.json promises too much (num_hidden_layers, tie_word_embeddings)"
    if not found.missing:
        return "config.json promises too little (num_hidden_layers), or the files hold more than a causal LM"
    return "files and config.json are of different versions; take both from one release"


def _quantized_by(config: Mapping[str, Any]) -> str | None:
    """Returns the quantization's name in a config.json, or in one of its parts; None if there is none."""
    for part in [config, *(value for value in config.values() if isinstance(value, dict))]:
        for key in ("quantization_config", "compression_config"):
            settings = part.get(key)
            if isinstance(settings, Mapping) and settings:
                return str(settings.get("quant_method", "of an unknown kind"))
    return None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
