"""Writes a Glm model in the original layout: keys, dtype, shard index and config as published.

Turnwise does not distribute ChatGLM's code: *.py files and tokenizer.model are copied from the user's base directory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import GlmConfig

from components.models.chatglm.config import original_config
from components.models.chatglm.detect import is_original, read_config
from components.models.chatglm.key_mapping import FREQUENCIES, frequencies, original_tensors
from components.models.sharded_safetensors import write_model
from components.storage.links_inside import copy_own

COPIED = ("*.py", "tokenizer.model", "tokenizer_config.json", "*LICENSE*")
SHARD_BYTES = 2 * 10**9  # the published checkpoints have shards of this size


def write_original(
    weights: Mapping[str, Tensor],
    config: GlmConfig,
    target: Path,
    *,
    base: Path | None,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> list[str]:
    """Writes the directory. Returns the names of files that were copied from `base`, the original directory of the model.

    Args:
        dtype: of the weights; by default each weight keeps its dtype.
    """
    target.mkdir(parents=True, exist_ok=True)
    original = base if base is not None and is_original(base) else None
    write_model(_tensors(weights, config, dtype), target, max_bytes=shard_bytes)
    written = original_config(config, read_config(original) if original else {})
    if dtype is not None:
        written["torch_dtype"] = str(dtype).removeprefix("torch.")
    (target / "config.json").write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return _copy(original, target) if original else []


def _tensors(
    weights: Mapping[str, Tensor], config: GlmConfig, dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in original_tensors(weights):
        yield key, tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
    yield FREQUENCIES, frequencies(config)


def _copy(base: Path, target: Path) -> list[str]:
    files = sorted({file for pattern in COPIED for file in base.glob(pattern) if file.is_file()})
    for file in files:
        copy_own(file, target / file.name, of=base)
    return [file.name for file in files]
