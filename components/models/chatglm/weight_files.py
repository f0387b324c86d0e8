"""The weight files of a directory: .safetensors, else .bin without pickled objects. Tensors are read when they are used."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from components.errors import InputError
from components.models.shard_names import shard_names
from components.storage.foreign_files import explain_foreign

WEIGHT_FILES = {".safetensors": "model.safetensors", ".bin": "pytorch_model.bin"}
CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Rows [start, stop) of a tensor in a file. Slicing it reads nothing.

    `open` maps the file each time: pages that were read stay in memory as long as a file is mapped.
    """

    open: Callable[[], Tensor]
    columns: torch.Size
    dtype: torch.dtype
    start: int
    stop: int

    @property
    def shape(self) -> torch.Size:
        return torch.Size([len(self), *self.columns])

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, rows: slice) -> StoredTensor:
        start, stop, _ = rows.indices(len(self))
        return replace(self, start=self.start + start, stop=self.start + stop)

    def read(self) -> Tensor:
        """Returns a view of the mapped file."""
        return self.open()[self.start : self.stop]

    def copy_into(self, target: Tensor) -> None:
        """Copies into a tensor of any dtype and device, with CHUNK_BYTES of additional memory.

        Raises ValueError if the target has another shape, because copying would broadcast.
        """
        if target.shape != self.shape:
            raise ValueError(f"{list(self.shape)} numbers do not fill a tensor of {list(target.shape)}")
        row_bytes = self.columns.numel() * self.dtype.itemsize
        step = max(1, CHUNK_BYTES // row_bytes)
        for row in range(0, len(self), step):
            target[row : row + step].copy_(self[row : row + step].read())


def shards_of(directory: Path) -> list[Path]:
    """Returns the files with the weights, in order. Raises InputError if there are none, or if one is missing."""
    for suffix, whole in WEIGHT_FILES.items():
        index = directory / f"{whole}.index.json"
        if index.is_file():
            return _files_of_index(directory, index)
        if (directory / whole).is_file():
            return [directory / whole]
        if loose := sorted(directory.glob(f"*{suffix}")):
            raise InputError(f"{directory}: {loose[0].name} without {whole}.index.json, so shards may be missing")
    raise InputError(f"{directory}: no weights; there is neither a {' nor a '.join(WEIGHT_FILES.values())} file")


def tensors_of(shard: Path) -> Iterator[tuple[str, StoredTensor]]:
    """Yields every tensor of a shard. Raises InputError if the file is damaged, or could run code when it is loaded."""
    with explain_foreign(shard, "its weights cannot be read", "a file is cut short, or none; download it again"):
        yield from _tensors_of(shard)


def _tensors_of(shard: Path) -> Iterator[tuple[str, StoredTensor]]:
    if shard.suffix == ".bin":
        loaded, is_mapped = _load_pickled(shard)
        for key, tensor in loaded.items():
            open_again: Callable[[], Tensor] = (
                partial(_open_pickled, shard, key) if is_mapped else partial(_same, tensor)
            )
            yield key, _stored_tensor(open_again, tensor)
        return
    with safe_open(shard, framework="pt") as file:
        keys = list(file.keys())
    for key in keys:
        open_again = partial(_open_safe, shard, key)
        yield key, _stored_tensor(open_again, open_again())


def _stored_tensor(open_again: Callable[[], Tensor], tensor: Tensor) -> StoredTensor:
    return StoredTensor(open=open_again, columns=tensor.shape[1:], dtype=tensor.dtype, start=0, stop=len(tensor))


def _open_safe(shard: Path, key: str) -> Tensor:
    with safe_open(shard, framework="pt") as file:
        tensor: Tensor = file.get_tensor(key)
    return tensor


def _open_pickled(shard: Path, key: str) -> Tensor:
    return _load_pickled(shard)[0][key]


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _files_of_index(directory: Path, index: Path) -> list[Path]:
    names = shard_names(index)
    if missing := [name for name in names if not (directory / name).is_file()]:
        raise InputError(f"{directory}: {len(missing)} of {len(names)} shards are missing: {', '.join(missing)}")
    return [directory / name for name in names]


def _load_pickled(shard: Path) -> tuple[dict[str, Tensor], bool]:
    """Returns (tensors by name, whether they are mapped from the file)."""
    is_mapped = True
    try:
        try:
            loaded = torch.load(shard, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # a file of torch before 1.6 cannot be mapped
            loaded, is_mapped = torch.load(shard, map_location="cpu", weights_only=True), False
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{shard}: holds more than tensors, and loading it could run code: {reason}") from None
    except (RuntimeError, EOFError) as error:
        raise InputError(f"{shard}: damaged ({str(error).splitlines()[0]}); download it again") from None
    if not (isinstance(loaded, dict) and all(isinstance(value, Tensor) for value in loaded.values())):
        raise InputError(f"{shard}: holds no dictionary of tensors")
    return loaded, is_mapped
