"""The digest of a model directory: directories with equal digests hold the same model."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from components.errors import InputError
from components.storage.foreign_files import read_object

CACHE = ".turnwise-digest.json"
PARTS = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja", "*.txt")


def model_digest(directory: Path) -> str:
    """`sha256:...` over the names and bytes of weights, configuration and tokenizer.

    Weights are gigabytes, so the digest is cached beside them, with the sizes and times of the files.
    """
    files = sorted({path for part in PARTS for path in directory.glob(part) if path.name != CACHE and path.is_file()})
    stamp = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]
    cache = directory / CACHE
    with contextlib.suppress(InputError):  # there is none, or it is broken: the files are read again
        known = read_object(cache)
        if known.get("stamp") == stamp and isinstance(known.get("digest"), str):
            return str(known["digest"])
    hashed = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashed.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    digest = f"sha256:{hashed.hexdigest()}"
    with contextlib.suppress(OSError):  # a read-only model is read again next time
        scratch = cache.with_name(f"{CACHE}.{os.getpid()}")  # another process may be reading it
        scratch.write_text(json.dumps({"digest": digest, "stamp": stamp}), encoding="utf-8")
        scratch.replace(cache)
    return digest
