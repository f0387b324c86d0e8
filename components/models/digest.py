"""The digest of a model directory: directories with equal digests hold the same model."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from components.errors import InputError
from components.storage.foreign_files import read_object
from components.storage.unfinished import replacing

CACHE = ".turnwise-digest.json"
PARTS = ("*.safetensors", "*.bin", "*.json", "*.model", "*.jinja", "*.txt")


def model_digest(directory: Path) -> str:
    """`sha256:...` over the names and bytes of weights, configuration and tokenizer.

    Weights are gigabytes, so the digest is cached beside them, with what the disk says of the files. An archive or a bucket
    can bring a cache along, and set a file's name, size and time; but not the time when it came to this disk.
    """
    files = sorted({path for part in PARTS for path in directory.glob(part) if path.name != CACHE and path.is_file()})
    stamp = [_stamp(path) for path in files]
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
    # A read-only model is read again next time; and another process may be reading the cache now.
    with contextlib.suppress(OSError), replacing(cache) as file:
        file.write(json.dumps({"digest": digest, "stamp": stamp}).encode())
    return digest


def _stamp(path: Path) -> list[str | int]:
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
