"""Tensors in safetensors files, whole or sharded by rows.

A worker that trains a share of a model writes some rows of each tensor. The metadata of its file says which rows:
{"rows": {name: [first row, rows of the whole tensor]}}; a file without this metadata holds whole tensors. Any number of
readers can read any rows from the files of any number of writers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from components.errors import InputError
from components.storage.permissions import readable_as_usual

BYTES_AT_ONCE = 2 * 10**9  # size of a file, and of the tensors in memory while it is written
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor from `first` on; the whole tensor has `total` rows. A scalar counts as one row."""

    tensor: Tensor
    first: int
    total: int

    @classmethod
    def all(cls, tensor: Tensor) -> Rows:
        length = len(tensor) if tensor.dim() else 1
        return cls(tensor, 0, length)

    @property
    def last(self) -> int:
        """The index after the last row."""
        return self.first + (len(self.tensor) if self.tensor.dim() else 1)


def write_rows(
    named: Iterable[tuple[str, Rows]], directory: Path, stem: str, *, writer: int = 0, writers: int = 1
) -> None:
    """Writes STEM.safetensors, or with several writers STEM_00001_of_00002_001.safetensors and so on."""
    if writers == 1:
        _save(dict(named), directory / f"{stem}.safetensors")
        return
    for part, group in enumerate(_group_by_size(named, BYTES_AT_ONCE), start=1):
        _save(group, directory / f"{stem}_{writer + 1:05d}_of_{writers:05d}_{part:03d}.safetensors")


class StoredTensors:
    """The tensors in files of write_rows, of all writers. Nothing that was read stays in memory or mapped."""

    def __init__(self, files: Sequence[Path]) -> None:
        """Raises InputError if rows are missing, and SafetensorError if a file is damaged."""
        self._parts: dict[str, list[tuple[int, int, Path]]] = {}
        self._shapes: dict[str, list[int]] = {}
        self._totals: dict[str, int] = {}
        for file in files:
            self._index_file(file)
        for name, parts in self._parts.items():
            parts.sort()
            if [first for first, _, _ in parts] + [self._totals[name]] != [0] + [last for _, last, _ in parts]:
                raise InputError(
                    f"{files[0].parent}: rows of {name} are missing; a file of another worker is not there"
                )

    @property
    def names(self) -> list[str]:
        return list(self._parts)

    def shape(self, name: str) -> list[int]:
        return [self._totals[name], *self._shapes[name][1:]] if self._shapes[name] else []

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Reads rows [first, last)."""
        parts = [
            _read(file, name, max(first, start) - start, min(last, stop) - start)
            for start, stop, file in self._parts[name]
            if start < last and first < stop
        ]
        if not parts:
            _, _, file = self._parts[name][0]
            return _read(file, name, 0, 0)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def whole(self, name: str) -> Tensor:
        return self.rows(name, 0, self._totals[name])

    def _index_file(self, file: Path) -> None:
        with safe_open(file, framework="pt") as opened:
            rows = json.loads((opened.metadata() or {}).get("rows", "{}"))
            names = opened.keys()
            for name in names:
                shape = opened.get_slice(name).get_shape()
                length = shape[0] if shape else 1
                first, total = rows.get(name, [0, length])
                self._parts.setdefault(name, []).append((first, first + length, file))
                self._shapes[name], self._totals[name] = shape, total


def write_model(tensors: Iterable[tuple[str, Tensor]], directory: Path, *, max_bytes: int = BYTES_AT_ONCE) -> None:
    """Writes whole tensors with an index, as AutoModelForCausalLM loads them, one file in memory at a time."""
    files: list[list[str]] = []
    total_bytes = 0
    for number, group in enumerate(_group_by_size(((name, Rows.all(tensor)) for name, tensor in tensors), max_bytes)):
        _save(group, directory / f"part-{number}.safetensors")
        files.append(list(group))
        total_bytes += sum(rows.tensor.nbytes for rows in group.values())
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files):  # the number of files is part of their names
        file = f"model-{number + 1:05d}-of-{len(files):05d}.safetensors"
        (directory / f"part-{number}.safetensors").rename(directory / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _group_by_size(named: Iterable[tuple[str, Rows]], max_bytes: int) -> Iterator[dict[str, Rows]]:
    group: dict[str, Rows] = {}
    size = 0
    for name, rows in named:
        if group and size + rows.tensor.nbytes > max_bytes:
            yield group
            group, size = {}, 0
        group[name] = rows
        size += rows.tensor.nbytes
    yield group


def _save(group: dict[str, Rows], file: Path) -> None:
    tensors = {name: rows.tensor.detach().cpu().contiguous() for name, rows in group.items()}
    parts = {
        name: [rows.first, rows.total] for name, rows in group.items() if (rows.first, rows.last) != (0, rows.total)
    }
    save_file(tensors, file, {"format": "pt"} | ({"rows": json.dumps(parts)} if parts else {}))
    readable_as_usual(file)


def _read(file: Path, name: str, first: int, last: int) -> Tensor:
    with safe_open(file, framework="pt") as opened:
        stored = opened.get_slice(name)
        tensor: Tensor = stored[first:last] if stored.get_shape() else opened.get_tensor(name)
    return tensor
