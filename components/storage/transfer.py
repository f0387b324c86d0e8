"""Files on their way to an object store and back: read once, hashed on the way, never whole in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow.fs
from pydantic import BaseModel, ConfigDict

from components.storage.retry import StorageError

CHUNK_BYTES = 8 * 2**20


class FileDigest(BaseModel):
    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


def send(file: Path, store: pyarrow.fs.FileSystem, path: str) -> FileDigest:
    """Raises OSError if the store did not take all of it."""
    with file.open("rb") as source, store.open_output_stream(path) as target:
        digest = _copied(source, target.write)
    arrived = store.get_file_info(path).size
    if arrived != digest.bytes:
        raise OSError(f"{arrived} of {digest.bytes} bytes of {file.name} have arrived")
    return digest


def fetch(store: pyarrow.fs.FileSystem, path: str, target: Path, expected: FileDigest, place: str) -> None:
    """Raises StorageError if what comes is not what was sent. `place` is its folder, for people."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open_input_stream(path) as source, target.open("wb") as file:
        found = _copied(source, file.write)
    if found != expected:
        raise StorageError(
            f"{place}: {path.rpartition('/')[2]} is damaged: {found.bytes} bytes with SHA-256 {found.sha256[:12]}..., and"
            f" {expected.bytes} with {expected.sha256[:12]}... were written; delete that folder: what can be made again is"
            " made again, and a trial goes on from the checkpoint before"
        )


def bring(store: pyarrow.fs.FileSystem, path: str, target: Path, size: int) -> None:
    """A file of which only the size is known. Raises OSError if not all of it comes."""
    with store.open_input_stream(path) as source, target.open("wb") as file:
        found = _copied(source, file.write)
    if found.bytes != size:
        raise OSError(f"{found.bytes} of {size} bytes of {path} have come")


def _copied(source: IO[bytes] | Any, write: Callable[[bytes], object]) -> FileDigest:
    hashed, size = hashlib.sha256(), 0
    for chunk in _chunks(source):
        hashed.update(chunk)
        write(chunk)
        size += len(chunk)
    return FileDigest(sha256=hashed.hexdigest(), bytes=size)


def _chunks(source: IO[bytes] | Any) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
