"""Rendered conversations on disk: one Arrow file per split, memory-mapped, so that all workers of a node share it."""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from pydantic import TypeAdapter

from components.conversations.chat_formats.rendered import Fork, RenderedConversation
from components.conversations.messages import MESSAGE_FIELDS, Conversation
from components.errors import InputError

SCHEMA = pa.schema(
    {
        "token_ids": pa.list_(pa.int32()),
        "target_weights": pa.list_(pa.float32()),
        "fork_starts": pa.list_(pa.int32()),
        "fork_depths": pa.list_(pa.int32()),
        "turn_ends": pa.list_(pa.int32()),
        "num_targets": pa.int32(),
        "target_bytes": pa.int32(),
        "truncated": pa.bool_(),
        "source": pa.string(),
        "keys": pa.list_(pa.string()),
        "conversation": pa.string(),
    }
)
FORKS = ("fork_starts", "fork_depths")
ROWS_PER_CHUNK = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One conversation of a store. `truncated` says that its last turns were removed to fit.

    `target_bytes` is the number of bytes of what is scored (conversations/target_bytes.py), 0 if nobody counted them.
    `keys` are those of split_membership.keys_of. `conversation` is the text, kept if it may be rendered again.
    """

    source: str
    rendered: RenderedConversation
    truncated: bool = False
    target_bytes: int = 0
    keys: tuple[str, ...] = ()
    conversation: Conversation | None = None


def write_store(path: Path, entries: Iterable[Entry]) -> None:
    """Writes entries in order; at most ROWS_PER_CHUNK of them are in memory at a time."""
    waiting = iter(entries)
    chunks = iter(lambda: list(itertools.islice(waiting, ROWS_PER_CHUNK)), [])
    write_batches(path, map(batch_of, chunks))


def write_batches(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes rows in order, in chunks of ROWS_PER_CHUNK: the same rows are the same bytes, however they are given."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        waiting: list[pa.RecordBatch] = []
        rows = 0
        for batch in batches:
            waiting.append(batch)
            rows += batch.num_rows
            while rows >= ROWS_PER_CHUNK:
                joined = pa.concat_batches(waiting)
                writer.write_batch(_whole(joined, ROWS_PER_CHUNK))
                waiting = [joined.slice(ROWS_PER_CHUNK)]
                rows -= ROWS_PER_CHUNK
        if rows:
            writer.write_batch(_whole(pa.concat_batches(waiting), rows))


def _whole(batch: pa.RecordBatch, rows: int) -> pa.RecordBatch:
    """Returns the first rows as a copy: a slice would be written with what remains of its bitmaps."""
    return batch.take(pa.array(range(rows)))


def batch_of(entries: Sequence[Entry]) -> pa.RecordBatch:
    rendered = [entry.rendered for entry in entries]
    columns = {
        "token_ids": _lists(np.int32, [each.token_ids for each in rendered]),
        "target_weights": _lists(np.float32, [each.target_weights for each in rendered]),
        "fork_starts": _lists(np.int32, [[fork.start for fork in each.forks] for each in rendered]),
        "fork_depths": _lists(np.int32, [[fork.depth for fork in each.forks] for each in rendered]),
        "turn_ends": _lists(np.int32, [each.turn_ends for each in rendered]),
        "num_targets": [each.num_targets for each in rendered],
        "target_bytes": [entry.target_bytes for entry in entries],
        "truncated": [entry.truncated for entry in entries],
        "source": [entry.source for entry in entries],
        "keys": [entry.keys for entry in entries],
        "conversation": [None if each.conversation is None else _to_json(each.conversation) for each in entries],
    }
    return pa.record_batch([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


def _lists(kind: type[np.generic], lists: Sequence[Sequence[float]]) -> pa.ListArray:
    """Of numbers; faster than pa.array, which looks at each of them."""
    ends = np.cumsum([0, *map(len, lists)], dtype=np.int32)
    values = np.fromiter(itertools.chain.from_iterable(lists), dtype=kind, count=int(ends[-1]))
    return pa.ListArray.from_arrays(ends, values)


def digest_of(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file(path: Path, digest: str) -> None:
    """Raises InputError unless the file has this digest, FileNotFoundError if there is none.

    A file may have gigabytes, so the result is cached beside it with its size and times: it is read once, not once per
    worker.
    """
    status = path.stat()
    stamp = f"{digest} {status.st_size} {status.st_mtime_ns} {status.st_ino}\n"
    cache = path.with_name(f".{path.name}.checked")
    with contextlib.suppress(OSError):
        if cache.read_text(encoding="utf-8") == stamp:
            return
    if digest_of(path) != digest:
        raise InputError(f"{path} is not the file that was prepared: its bytes have another digest")
    with contextlib.suppress(OSError):  # without write access the file is read again next time
        cache.write_text(stamp, encoding="utf-8")


class TokenStore:
    """One split. Indices are conversations, in the order in which they were written.

    The file's chunks are not combined, because that would copy the file into every worker's memory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self._token_ids = self._table.column("token_ids").chunks
        self._target_weights = self._table.column("target_weights").chunks
        # Stores of earlier versions have paths only.
        self._forks = [self._table.column(name).chunks for name in FORKS if name in self._table.column_names]
        self._starts = np.cumsum([0, *map(len, self._token_ids)]).tolist()

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each conversation, int64."""
        each = [np.diff(chunk.offsets.to_numpy()) for chunk in self._token_ids]
        return np.concatenate([np.zeros(0, dtype=np.int64), *each])

    @cached_property
    def num_targets(self) -> np.ndarray:
        """The number of scored tokens of each conversation, int32."""
        return np.asarray(self._table.column("num_targets").to_numpy())

    @property
    def total_targets(self) -> int:
        return int(self.num_targets.sum())

    @cached_property
    def target_bytes(self) -> np.ndarray:
        """The number of scored bytes of each conversation, int32; 0 where nobody counted them, as in earlier versions."""
        if "target_bytes" not in self._table.column_names:
            return np.zeros(len(self), dtype=np.int32)
        return np.asarray(self._table.column("target_bytes").to_numpy())

    def token_ids_from(self, first: int) -> list[int]:
        """Returns the distinct token ids in the store that are `first` or more, in order."""
        found: set[int] = set()
        for chunk in self._token_ids:
            token_ids = chunk.flatten().to_numpy()
            found.update(np.unique(token_ids[token_ids >= first]).tolist())
        return sorted(found)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns (token_ids int32, target_weights float32) of a conversation, not copied."""
        chunk, inside = self._locate(index)
        return _slice(self._token_ids[chunk], inside), _slice(self._target_weights[chunk], inside)

    def forks(self, index: int) -> tuple[Fork, ...]:
        """Returns where the tokens of a conversation fork off; nothing if they are one path."""
        if not self.has_forks:
            return ()
        chunk, inside = self._locate(index)
        return tuple(map(Fork, *(_slice(column[chunk], inside).tolist() for column in self._forks)))

    @property
    def num_trees(self) -> int:
        """The number of conversations that fork."""
        return sum(int((np.diff(chunk.offsets.to_numpy()) > 0).sum()) for chunk in self._forks[0]) if self._forks else 0

    @cached_property
    def has_forks(self) -> bool:
        """Whether any conversation is a tree, not a path."""
        return self.num_trees > 0

    def conversation_of(self, row: int) -> int:
        """Returns the conversation that a row belongs to. Here each is one row; see SeparateRows."""
        return row

    def token_of(self, row: int, position: int) -> int:
        """Returns the number, within its conversation, of a row's token. Here they are the same; see SeparateRows."""
        return position

    def turn_ends(self, index: int) -> tuple[int, ...] | None:
        """Returns the tokens behind which scored turns of a conversation end; None in stores of earlier versions."""
        if "turn_ends" not in self._table.column_names:
            return None
        return tuple(self._table.column("turn_ends")[index].as_py())

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the chunk of a conversation, and its number in it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        chunk = bisect.bisect_right(self._starts, index) - 1
        return chunk, index - self._starts[chunk]

    def source(self, index: int) -> str:
        return str(self._table.column("source")[index].as_py())

    @cached_property
    def keys(self) -> list[tuple[str, ...]] | None:
        """The keys of each conversation; None in stores of earlier versions."""
        if "keys" not in self._table.column_names:
            return None
        return [tuple(keys) for keys in self._table.column("keys").to_pylist()]

    def conversation(self, index: int) -> Conversation | None:
        """Returns the text from which the tokens were rendered; None if it was not kept."""
        if "conversation" not in self._table.column_names:
            return None
        text = self._table.column("conversation")[index].as_py()
        return None if text is None else _from_json(text)

    def is_truncated(self, index: int) -> bool:
        return bool(self._table.column("truncated")[index].as_py())


_CONVERSATION = TypeAdapter(Conversation)


def _to_json(conversation: Conversation) -> str:
    tree = {field.name: getattr(conversation, field.name) for field in fields(conversation)}
    if conversation.expect is None:
        del tree["expect"]
    tree["messages"] = [
        {"loss" if name == "loss_weight" else name: getattr(message, name) for name in MESSAGE_FIELDS}
        for message in conversation.messages
    ]
    return json.dumps(tree)


def _from_json(text: str) -> Conversation:
    tree = json.loads(text)
    tree["messages"] = [_rename_keys(message, {"loss": "loss_weight"}) for message in tree["messages"]]
    return _CONVERSATION.validate_python(tree)


def _rename_keys(mapping: dict[str, object], names: dict[str, str]) -> dict[str, object]:
    """Keeps the order: a stored conversation has the keys of a data file, and the same bytes as in earlier versions."""
    return {names.get(key, key): value for key, value in mapping.items()}


def _slice(column: pa.ListArray, index: int) -> np.ndarray:
    start, end = column.offsets[index].as_py(), column.offsets[index + 1].as_py()
    return np.asarray(column.values.slice(start, end - start).to_numpy(zero_copy_only=True))
