"""What rows are made of: whole conversations, as they are stored, or the sequences of each as rows of their own."""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import numpy as np

from components.conversations.chat_formats.rendered import Fork, TreeSequence, sequences_of
from components.data.token_store import TokenStore


class RowStore(Protocol):
    """Sequences of tokens by index; TokenStore has the meanings of these members."""

    @property
    def lengths(self) -> np.ndarray: ...

    @property
    def num_targets(self) -> np.ndarray: ...

    @property
    def total_targets(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]: ...

    def forks(self, index: int) -> tuple[Fork, ...]: ...

    def conversation_of(self, row: int) -> int: ...

    def token_of(self, row: int, position: int) -> int: ...


class SeparateRows:
    """Every sequence of every conversation, for models that cannot take a tree's mask. The targets are the same.

    What sequences share is repeated in each of them, and scored in none but its own.
    """

    def __init__(self, store: TokenStore) -> None:
        self.store = store
        self._rows = [
            (index, sequence)
            for index in range(len(store))
            for sequence in sequences_of(int(store.lengths[index]), store.forks(index))
        ]

    def __len__(self) -> int:
        return len(self._rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        return np.array([sequence.length for _, sequence in self._rows], dtype=np.int64)

    @cached_property
    def num_targets(self) -> np.ndarray:
        return np.array([int((self[row][1] > 0).sum()) for row in range(len(self))], dtype=np.int32)

    @property
    def total_targets(self) -> int:
        return self.store.total_targets

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        conversation, sequence = self._rows[index]
        token_ids, target_weights = self.store[conversation]
        return _joined(token_ids, sequence), _own_weights(target_weights, sequence)

    def forks(self, index: int) -> tuple[Fork, ...]:
        return ()

    def conversation_of(self, row: int) -> int:
        return self._rows[row][0]

    def token_of(self, row: int, position: int) -> int:
        for start, end in self._rows[row][1].spans:
            if position < end - start:
                return start + position
            position -= end - start
        raise IndexError(position)


def rows_of(store: TokenStore, *, separate: bool) -> RowStore:
    """Returns the store itself, or its conversations as separate rows if any of them is a tree."""
    return SeparateRows(store) if separate and store.has_forks else store


def _joined(values: np.ndarray, sequence: TreeSequence) -> np.ndarray:
    return np.concatenate([values[start:end] for start, end in sequence.spans])


def _own_weights(weights: np.ndarray, sequence: TreeSequence) -> np.ndarray:
    *shared, (start, end) = sequence.spans
    return np.concatenate([*(np.zeros(stop - begin, weights.dtype) for begin, stop in shared), weights[start:end]])
