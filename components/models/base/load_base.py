"""Resolves the base model of an experiment to a directory, and loads it into memory."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import BitsAndBytesConfig, PreTrainedConfig, PreTrainedModel

from components.errors import InputError
from components.experiment.spec import ModelSpec
from components.models.attention_backend import usable_attention
from components.models.base.bundled_models import BUNDLED_MODELS
from components.models.base.wheel_model import fetch
from components.models.chatglm.config import generation_config, glm_config
from components.models.chatglm.convert import convert_once
from components.models.chatglm.detect import is_original
from components.models.chatglm.load_original import load_original
from components.models.chatglm.read_weights import glm_weights
from components.models.chatglm.weight_files import shards_of
from components.models.dtypes import torch_dtype
from components.models.lean_layers import make_layers_lean
from components.models.load_causal_lm import check_finite, check_release, check_weights, load_causal_lm
from components.models.model_config import read_model_config
from components.models.quantization_backend import INSTALL_ADVICE, why_unusable
from components.storage.foreign_files import explain_foreign
from components.storage.links_inside import check_regular, copy_own
from components.storage.open_folder import folder_at
from components.storage.uri import is_remote

Quantize = Literal["nf4", "int8"] | None
ORIGINAL_PATTERNS = ["*.py", "*LICENSE*"]  # ChatGLM's code is never run; an export in its layout includes it
WEIGHT_PATTERNS = ["*.safetensors"]
MODEL_PATTERNS = [*WEIGHT_PATTERNS, "*.json", "*.model", "*.jinja", "*.txt"]


def resolve_model(model: ModelSpec, *, weights: bool = True) -> Path:
    """Returns the local directory of a base model, downloaded if necessary. Raises InputError if there is none.

    Without `weights` a directory with a tokenizer is enough, and only small files of a hub model are downloaded.
    """
    if model.path in BUNDLED_MODELS:
        return fetch(model.path)
    directory = _download(model.path, weights) if is_remote(model.path) else Path(model.path).expanduser()
    if directory.is_dir():
        check_regular(directory)
        if weights and not (directory / "config.json").exists():
            raise InputError(f"model.path={model.path}: the directory has no config.json, so it holds no model")
        return _check_supported(model, directory.absolute())
    if model.path.startswith((".", "/", "~")) or model.path.count("/") > 1:
        raise InputError(f"model.path={model.path}: no such directory")
    wanted = MODEL_PATTERNS if weights else [pattern for pattern in MODEL_PATTERNS if pattern not in WEIGHT_PATTERNS]
    try:
        directory = Path(snapshot_download(model.path, revision=model.revision, allow_patterns=wanted, etag_timeout=5))
        if weights and is_original(directory):
            patterns = ORIGINAL_PATTERNS if list(directory.glob("*.safetensors")) else [*ORIGINAL_PATTERNS, "*.bin"]
            snapshot_download(model.path, revision=model.revision, allow_patterns=patterns, etag_timeout=5)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        known = ", ".join(BUNDLED_MODELS)
        raise InputError(
            f"model.path={model.path}: neither a local directory, nor one of {known}, nor to be had from the hub ({reason})"
        ) from None
    return _check_supported(model, directory)


def _download(uri: str, weights: bool) -> Path:
    """Returns this node's copy of a model directory in a bucket."""
    wanted = [*MODEL_PATTERNS, *ORIGINAL_PATTERNS, "*.bin"]
    try:
        patterns = wanted if weights else [pattern for pattern in wanted if pattern not in (*WEIGHT_PATTERNS, "*.bin")]
        return folder_at(uri).download_matching(patterns)
    except OSError as error:
        raise InputError(f"model.path={uri}: no such model, or it cannot be read: {error}") from None


def check_base(model: ModelSpec) -> None:
    """Checks that the files of a base model have all of its weights, by names and shapes; no weight is read.

    Raises InputError if they do not.
    """
    directory = resolve_model(model)
    if not is_original(directory):
        check_weights(directory)
        return
    with explain_foreign(directory):
        for _ in glm_weights(shards_of(directory), glm_config(directory)):
            pass


def load_base_model(
    model: ModelSpec, *, device: torch.device | str = "cpu", quantize: Quantize = None, as_stored: bool = False
) -> PreTrainedModel:
    """Loads the model on a device. Weights stay mapped from the file until they, or their dtype, are changed.

    Args:
        quantize: nf4 and int8 keep the linear layers in 4 or 8 bits (bitsandbytes); embeddings and head are unchanged.
        as_stored: keeps the file's dtype, so that the weights stay mapped, regardless of model.dtype.
    """
    directory = resolve_model(model)
    if is_original(directory):
        glm = convert_once(directory, torch_dtype(model.dtype))
        if glm is None:
            return _load_streaming(model, directory, device, quantize)
        directory = glm
    loaded = load_causal_lm(
        directory,
        device=None if quantize else device,
        dtype="auto" if as_stored else torch_dtype(model.dtype),
        attn_implementation=usable_attention(model.attention, config_of(directory)),
        quantization_config=_quantization_config(model, quantize),
        device_map={"": device} if quantize else None,
    )
    make_layers_lean(loaded)
    if quantize is not None:
        _keep_differentiable(loaded)
    return loaded


def _load_streaming(
    model: ModelSpec, directory: Path, device: torch.device | str, quantize: Quantize
) -> PreTrainedModel:
    """Loads an original ChatGLM3 without a conversion on disk."""
    if quantize is not None:
        raise InputError(
            f"model.path={model.path}: a ChatGLM3 is quantized from its converted weights, and the disk of the cache has no"
            " room for them; set TURNWISE_CACHE to a folder on another"
        )
    loaded = load_original(
        directory,
        dtype=torch_dtype(model.dtype),
        attention=usable_attention(model.attention, config_of(directory)),
        device=device,
    )
    check_finite(loaded, directory)
    make_layers_lean(loaded)
    return loaded


def _keep_differentiable(model: PreTrainedModel) -> None:
    """Switches off bitsandbytes' repacking of 4-bit weights, in eval mode, for CPUs with AVX512-BF16.

    It rounds their scales and is never undone: after the first evaluation no gradient would pass through these weights,
    and adapters below the last layer would not be trained.
    """
    from bitsandbytes.nn import Linear4bit  # the import takes a second, and only quantized models need it

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def config_of(directory: Path) -> PreTrainedConfig:
    """Returns the configuration as transformers' own class."""
    return glm_config(directory) if is_original(directory) else read_model_config(directory)


def save_config(directory: Path, target: Path) -> None:
    """Writes config.json and generation_config.json of a base model to the directory of other weights of its kind."""
    if is_original(directory):
        glm_config(directory).save_pretrained(target)
        generation_config(directory).save_pretrained(target)
        return
    for name in ("config.json", "generation_config.json"):
        if (directory / name).exists():
            copy_own(directory / name, target / name, of=directory)


def _check_supported(model: ModelSpec, directory: Path) -> Path:
    """Returns the directory. Raises InputError if it cannot be trained (another ChatGLM, a quantized release)."""
    try:
        if is_original(directory):
            glm_config(directory)
        else:
            check_release(directory)
    except ValueError as error:
        raise InputError(f"model.path={error}") from None
    return directory


def _quantization_config(model: ModelSpec, quantize: Quantize) -> BitsAndBytesConfig | None:
    if quantize is None:
        return None
    if reason := why_unusable():
        raise InputError(f"method.quantize={quantize}: {reason}; {INSTALL_ADVICE}")
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch_dtype(model.dtype),
    )
