"""What a preparation on a cluster keeps in the storage until it is done: work for the nodes, and what they made of it.

Each file begins with the SHA-256 of the rest, so half a file counts for none. The rest are pickles: who writes the storage is
trusted, as README.md says.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

from components.storage.folder import Folder
from components.storage.retry import StorageError

LAYOUT = 1  # of what the files hold; part of a shard's key
RECORDS = 1024  # of a shard, beyond which it takes no other chunk
BYTES = 16_000_000
DIGEST_BYTES = 32
GIVEN, MADE, FAILED = "given", "made", "failed"


class LostShardError(StorageError):
    """A file that must be there is not, or is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Chunks that one task works on. `key`: its number, and a digest of the work and of the chunks."""

    key: str
    content: bytes


def shards_of(work: Callable[..., Any], chunks: Iterable[Sized]) -> Iterator[Shard]:
    """Yields the chunks in order, several in a shard. The same work on the same chunks has the same keys in any process."""
    of_work = hashlib.sha256(f"{LAYOUT}\n".encode() + pickle.dumps(work)).digest()
    for number, content in enumerate(_joined(chunks)):
        digest = hashlib.sha256(of_work + content).hexdigest()
        yield Shard(key=f"{number:06}-{digest[:32]}", content=content)


def _joined(chunks: Iterable[Sized]) -> Iterator[bytes]:
    parts: list[bytes] = []
    records = size = 0
    for chunk in chunks:
        parts.append(pickle.dumps(chunk, protocol=pickle.HIGHEST_PROTOCOL))
        records += len(chunk)
        size += len(parts[-1])
        if records >= RECORDS or size >= BYTES:
            yield b"".join(parts)
            parts, records, size = [], 0, 0
    if parts:
        yield b"".join(parts)


@dataclass(frozen=True, slots=True)
class ShardStore:
    """The shards of one preparation in a folder that all nodes see."""

    folder: Folder

    def give(self, shard: Shard) -> None:
        self._write(GIVEN, shard.key, shard.content)

    def given(self, key: str) -> Iterator[Any]:
        """Yields the chunks of a shard. Raises LostShardError."""
        yield from _unpickled(self._read(GIVEN, key))

    def keep(self, key: str, results: list[Any], error: Exception | None) -> str:
        """Keeps what the chunks became, up to the error that ended the work, and returns where."""
        place = MADE if error is None else FAILED
        self._write(place, key, pickle.dumps((results, error), protocol=pickle.HIGHEST_PROTOCOL))
        return place

    def results(self, key: str, place: str) -> tuple[list[Any], Exception | None]:
        """Returns what was kept; what was given goes. Raises LostShardError."""
        results, error = pickle.loads(self._read(place, key))
        (self.folder / GIVEN).delete_file(key)
        return results, error

    def made(self) -> set[str]:
        """Returns the keys of results that seem to be there."""
        return set((self.folder / MADE).list_names())

    def is_whole(self, key: str) -> bool:
        """Whether results are there and have their digest."""
        try:
            self._read(MADE, key)
        except LostShardError:
            return False
        return True

    def share(self, value: Any) -> str:
        """Keeps something for all tasks, and returns its name for `shared`."""
        content = pickle.dumps(value)
        name = hashlib.sha256(content).hexdigest()[:32]
        self._write("shared", name, content)
        return name

    def shared(self, name: str) -> Any:
        return pickle.loads(self._read("shared", name))

    def _write(self, place: str, key: str, content: bytes) -> None:
        (self.folder / place).write_bytes(key, hashlib.sha256(content).digest() + content)

    def _read(self, place: str, key: str) -> bytes:
        try:
            written = (self.folder / place).read_bytes(key)
        except FileNotFoundError:
            raise LostShardError(f"{self.folder}/{place}/{key} is not there") from None
        content = written[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != written[:DIGEST_BYTES]:
            raise LostShardError(f"{self.folder}/{place}/{key} is damaged: its digest is another")
        return content


def _unpickled(content: bytes) -> Iterator[Any]:
    stream = io.BytesIO(content)
    while stream.tell() < len(content):
        yield pickle.load(stream)
