"""The weight files of a directory, one tensor at a time: .safetensors, else .bin without pickled objects."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

KINDS = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}


def shards_of(directory: Path) -> list[Path]:
    """The files that hold its weights, in order. Raises ValueError if there are none, or one of them is missing."""
    for suffix, whole in KINDS.items():
        index = directory / f"{whole}.index.json"
        if index.is_file():
            return _indexed(directory, index)
        if (directory / whole).is_file():
            return [directory / whole]
        if loose := sorted(directory.glob(f"*{suffix}")):
            raise ValueError(f"{directory}: {loose[0].name} without {whole}.index.json, so shards may be missing")
    raise ValueError(f"{directory}: no weights; there is neither a {' nor a '.join(KINDS.values())} file")


def tensors_of(shard: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of one shard. Whoever keeps one copies it: it may be a view of the file.

    Raises ValueError if the file is damaged, or would run code while it is loaded.
    """
    if shard.suffix == ".bin":
        yield from _unpickled(shard).items()
        return
    try:
        with safe_open(shard, framework="pt") as file:
            keys = list(file.keys())
        for key in keys:
            # Opened anew for each: what was read of the file stays in memory as long as it is open.
            with safe_open(shard, framework="pt") as file:
                yield key, file.get_tensor(key)
    except SafetensorError as error:
        raise ValueError(f"{shard}: damaged ({error}); download it again") from None


def _indexed(directory: Path, index: Path) -> list[Path]:
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise ValueError(f"{directory}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}")
    return [directory / name for name in names]


def _unpickled(shard: Path) -> dict[str, Tensor]:
    try:
        try:
            loaded = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of torch before 1.6 cannot be mapped
            loaded = torch.load(shard, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{shard}: holds more than tensors, and loading it could run code: {reason}") from None
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{shard}: damaged ({str(error).splitlines()[0]}); download it again") from None
    if not (isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())):
        raise ValueError(f"{shard}: holds no dictionary of tensors")
    return loaded
