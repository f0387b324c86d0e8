"""Uploads and downloads of single files: read once, hashed on the way, in chunks."""

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


def upload_file(file: Path, store: pyarrow.fs.FileSystem, path: str) -> FileDigest:
    """Raises OSError if the store did not receive all of it."""
    with file.open("rb") as source, store.open_output_stream(path) as target:
        digest = _copy_with_digest(source, target.write)
    received = store.get_file_info(path).size
    if received != digest.bytes:
        raise OSError(f"{received} of {digest.bytes} bytes of {file.name} have arrived")
    return digest


def download_verified(
    store: pyarrow.fs.FileSystem, path: str, target: Path, expected: FileDigest, location: str
) -> None:
    """Raises StorageError if the content is not what was uploaded. `location` names its folder in the message."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with store.open_input_stream(path) as source, target.open("wb") as file:
        found = _copy_with_digest(source, file.write)
    if found != expected:
        raise StorageError(
            f"{location}: {path.rpartition('/')[2]} is damaged: {found.bytes} bytes with SHA-256 {found.sha256[:12]}..., and"
            f" {expected.bytes} with {expected.sha256[:12]}... were written; delete that folder: what can be made again is"
            " made again, and a trial goes on from the checkpoint before"
        )


def download_unverified(store: pyarrow.fs.FileSystem, path: str, target: Path, size: int) -> None:
    """Downloads a file of which only the size is known. Raises OSError if the size differs."""
    with store.open_input_stream(path) as source, target.open("wb") as file:
        found = _copy_with_digest(source, file.write)
    if found.bytes != size:
        raise OSError(f"{found.bytes} of {size} bytes of {path} have arrived")


def _copy_with_digest(source: IO[bytes] | Any, write: Callable[[bytes], object]) -> FileDigest:
    sha256, size = hashlib.sha256(), 0
    for chunk in _chunks(source):
        sha256.update(chunk)
        write(chunk)
        size += len(chunk)
    return FileDigest(sha256=sha256.hexdigest(), bytes=size)


def _chunks(source: IO[bytes] | Any) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        yield chunk
