"""All weights of a directory under Glm's names, checked against the config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import GlmConfig, GlmForCausalLM

from components.errors import InputError
from components.models.chatglm.key_mapping import QkvRows, glm_tensors
from components.models.chatglm.weight_files import StoredTensor, tensors_of

MAX_NAMED = 5


def glm_weights(shards: list[Path], config: GlmConfig) -> Iterator[tuple[Path, str, StoredTensor]]:
    """Yields (shard, name, tensor) in the order of the files.

    Raises InputError for a weight that the config does not have, and at the end for missing weights.
    """
    rows, shapes = QkvRows.of(config), shapes_of(config)
    missing = set(shapes)
    for shard in shards:
        for key, tensor in tensors_of(shard):
            for name, part in _glm_parts(shard, key, tensor, rows):
                if name not in shapes:
                    raise InputError(f"{shard}: {key} is in no model with this config.json; num_layers may be wrong")
                if part.shape != shapes[name]:
                    found, wanted = list(part.shape), list(shapes[name])
                    raise InputError(f"{shard}: {key} gives {name} the shape {found}, and config.json {wanted}")
                missing.discard(name)
                yield shard, name, part
    if missing:
        named = ", ".join(sorted(missing)[:MAX_NAMED])
        raise InputError(f"{shards[0].parent}: {len(missing)} weights of the model are in no file, among them {named}")


def shapes_of(config: GlmConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: parameter.shape for name, parameter in GlmForCausalLM(config).named_parameters()}


def _glm_parts(shard: Path, key: str, tensor: StoredTensor, rows: QkvRows) -> list[tuple[str, StoredTensor]]:
    try:
        return list(glm_tensors(key, tensor, rows))
    except ValueError as error:
        raise InputError(f"{shard}: {error}") from None
