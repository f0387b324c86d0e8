"""Rendered conversations on disk: one Arrow file a split, memory-mapped, so that all workers of a node share it."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from components.conversations.rendered import RenderedConversation

SCHEMA = pa.schema(
    {
        "token_ids": pa.list_(pa.int32()),
        "target_weights": pa.list_(pa.float32()),
        "num_targets": pa.int32(),
        "source": pa.string(),
    }
)
ROWS_PER_CHUNK = 1024


def write_store(path: Path, conversations: Iterable[tuple[str, RenderedConversation]]) -> None:
    """Writes (source, rendered) pairs in order; at most ROWS_PER_CHUNK of them are in memory at a time."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        rows: list[dict[str, object]] = []
        for source, rendered in conversations:
            rows.append(
                {
                    "token_ids": rendered.token_ids,
                    "target_weights": rendered.target_weights,
                    "num_targets": rendered.num_targets,
                    "source": source,
                }
            )
            if len(rows) == ROWS_PER_CHUNK:
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))
                rows = []
        if rows:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


class TokenStore:
    """One split. Indices are conversations, in the order they were written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().combine_chunks()
        # One chunk a column now; an empty table has none.
        empty = self._table.num_rows == 0
        self._token_ids = None if empty else self._table.column("token_ids").chunk(0)
        self._target_weights = None if empty else self._table.column("target_weights").chunk(0)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each conversation, int64."""
        if self._token_ids is None:
            return np.zeros(0, dtype=np.int64)
        return np.asarray(np.diff(self._token_ids.offsets.to_numpy()), dtype=np.int64)

    @cached_property
    def num_targets(self) -> np.ndarray:
        """Scored tokens of each conversation, int32."""
        return np.asarray(self._table.column("num_targets").to_numpy())

    @property
    def total_targets(self) -> int:
        return int(self.num_targets.sum())

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(token_ids int32, target_weights float32) of a conversation, not copied."""
        if self._token_ids is None or self._target_weights is None:
            raise IndexError(index)
        return self._slice(self._token_ids, index), self._slice(self._target_weights, index)

    def source(self, index: int) -> str:
        return str(self._table.column("source")[index].as_py())

    @staticmethod
    def _slice(column: pa.ListArray, index: int) -> np.ndarray:
        start, end = column.offsets[index].as_py(), column.offsets[index + 1].as_py()
        return np.asarray(column.values.slice(start, end - start).to_numpy(zero_copy_only=True))
