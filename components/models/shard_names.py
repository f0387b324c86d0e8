"""The weight files that a model's index names."""

from __future__ import annotations

from pathlib import Path

from components.errors import InputError
from components.storage.foreign_files import read_object
from components.storage.names_inside import inside

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_indexes(directory: Path) -> None:
    """Raises InputError if an index of the directory names a file outside of it."""
    for name in INDEXES:
        if (directory / name).is_file():
            shard_names(directory / name)


def shard_names(index: Path) -> list[str]:
    """Returns the names of the files, sorted. Raises InputError if it is no index, or names a file of another folder."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: holds no weight_map, which says in which file each weight is; download it again")
    for name in weight_map.values():
        inside(name, index)
    return sorted(set(weight_map.values()))
