"""What a preparation on a cluster keeps in the storage until it is done: work for the nodes, and what they made of it.

Each file begins with a signature of the rest, by a secret of the driver's user: half a file counts for none, and nor does one
that somebody else wrote. The rest are pickles, which must not be read from a stranger.
"""

from __future__ import annotations

import hashlib
import hmac
import io
import pickle
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field
from typing import Any

from components.storage.folder import Folder
from components.storage.retry import StorageError

LAYOUT = 1  # of what the files hold; part of a shard's key
RECORDS = 1024  # of a shard, beyond which it takes no other chunk
BYTES = 16_000_000
SIGNATURE_BYTES = 32
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
    secret: bytes = field(repr=False)

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
        """Whether results are there, and of this user."""
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
        (self.folder / place).write_bytes(key, self._signature(place, key, content) + content)

    def _read(self, place: str, key: str) -> bytes:
        try:
            written = (self.folder / place).read_bytes(key)
        except FileNotFoundError:
            raise LostShardError(f"{self.folder}/{place}/{key} is not there") from None
        content = written[SIGNATURE_BYTES:]
        if not hmac.compare_digest(self._signature(place, key, content), written[:SIGNATURE_BYTES]):
            raise LostShardError(
                f"{self.folder}/{place}/{key} is damaged, or not of this preparation: its signature is another"
            )
        return content

    def _signature(self, place: str, key: str, content: bytes) -> bytes:
        """It is of the file's place, too: one file in place of another is none of ours."""
        return hmac.digest(self.secret, f"{place}/{key}\n".encode() + content, "sha256")


def _unpickled(content: bytes) -> Iterator[Any]:
    stream = io.BytesIO(content)
    while stream.tell() < len(content):
        yield pickle.load(stream)
