"""Converts an original directory to Glm's layout once, in the cache, so that all workers of a node map the same files."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import groupby
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from components.conversations.tokenizers.chatglm3 import MODEL_FILE
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.models.chatglm.config import generation_config, glm_config
from components.models.chatglm.read_weights import glm_weights, shapes_of
from components.models.chatglm.weight_files import shards_of
from components.models.digest import model_digest
from components.storage.foreign_files import explain_foreign
from components.storage.node_cache import cache_folder, node_lock, scratch_for
from components.storage.permissions import readable_as_usual

CONVERSION_VERSION = 1  # part of the folder's name: raise it when converted files change
RECORD = "converted_from.json"
SPARE_BYTES = 256 * 2**20  # for the files beside the weights, and a reserve


class Conversion(BaseModel):
    """The source of a converted directory, and its files with their SHA-256 and sizes in bytes."""

    model_config = ConfigDict(frozen=True)

    source: str
    source_digest: str
    files: dict[str, tuple[str, int]]

    def is_whole(self, directory: Path) -> bool:
        """Whether every file exists with its size (its digest is not read)."""
        return all(
            (directory / name).is_file() and (directory / name).stat().st_size == size
            for name, (_, size) in self.files.items()
        )


def convert_once(directory: Path, dtype: torch.dtype) -> Path | None:
    """Returns the Glm directory of an original one, converted if the cache has none; None if its disk is too full.

    The files have the dtype that is used in memory: they can be mapped, while every worker would copy another dtype. One
    shard at a time is read and written. Raises InputError if the directory is not a ChatGLM3, or is incomplete.
    """
    size = sum(shape.numel() for shape in shapes_of(glm_config(directory)).values()) * dtype.itemsize
    shards_of(directory)  # raises before gigabytes are read
    digest = model_digest(directory)
    name = f"{digest.removeprefix('sha256:')[:24]}-{str(dtype).removeprefix('torch.')}-{CONVERSION_VERSION}"
    target = cache_folder() / "chatglm" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with node_lock(target.with_suffix(".lock")):
        if (target / RECORD).is_file():
            if _is_whole(target):
                return target
            shutil.rmtree(target)
        if shutil.disk_usage(target.parent).free < size + SPARE_BYTES:
            return None
        with scratch_for(target) as scratch:
            with explain_foreign(directory, "cannot be converted"):
                convert(directory, scratch / "model", dtype, source_digest=digest)
            try:
                (scratch / "model").rename(target)
            except OSError:  # another node that shares the cache was faster
                if not (target / RECORD).is_file():
                    raise
    return target


def _is_whole(target: Path) -> bool:
    """Whether a conversion has all its files; a broken record is none."""
    try:
        return Conversion.model_validate_json((target / RECORD).read_text(encoding="utf-8")).is_whole(target)
    except (OSError, ValueError):
        return False


def convert(directory: Path, target: Path, dtype: torch.dtype, *, source_digest: str) -> None:
    """Writes the Glm directory: weights, config, and the tokenizer if there is one."""
    target.mkdir(parents=True)
    config, shards = glm_config(directory), shards_of(directory)
    config.dtype = dtype
    weight_map: dict[str, str] = {}
    size = 0
    weights = glm_weights(shards, config)
    for number, (_, of_shard) in enumerate(groupby(weights, key=lambda weight: weight[0]), start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: tensor.read().to(dtype).contiguous() for _, name, tensor in of_shard}
        save_file(tensors, target / file, {"format": "pt"})
        readable_as_usual(target / file)
        weight_map |= dict.fromkeys(tensors, file)
        size += sum(tensor.nbytes for tensor in tensors.values())
        tensors.clear()  # frees this shard before the next one is read
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    config.save_pretrained(target)
    if (directory / MODEL_FILE).is_file():
        load_tokenizer(directory).save_pretrained(target)
        generation_config(directory).save_pretrained(target)
    files = {path.name: (_sha256(path), path.stat().st_size) for path in sorted(target.iterdir())}
    record = Conversion(source=str(directory), source_digest=source_digest, files=files)
    (target / RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
