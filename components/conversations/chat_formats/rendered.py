"""A conversation as tokens, and which of them are scored.

What a model sees in use at a scored turn is a sequence: the prompt, then the answer. Sequences that begin alike share their
beginning, so a conversation is a prefix tree of tokens. Most chat templates only append, and their tree is one path.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from components.conversations.chat_formats.shared_prefix import shared_prefix

IGNORE_INDEX = -100


class Fork(NamedTuple):
    """From token `start` on, the tokens continue the path of the tokens before them, cut to its first `depth` tokens."""

    start: int
    depth: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedConversation:
    """target_weights[i] is the loss weight of predicting token_ids[i]; 0.0 if it is not a target.

    `turn_ends` are the lengths of the prefixes that end after a scored turn's stop token: there a truncation may cut.
    `forks`, in order, are where the tokens do not follow the token before them; there are none in a path. A fork
    begins inside a prompt, so a target always follows the token that it is predicted from.
    """

    token_ids: tuple[int, ...]
    target_weights: tuple[float, ...]
    turn_ends: tuple[int, ...]
    forks: tuple[Fork, ...] = ()

    def __post_init__(self) -> None:
        if len(self.token_ids) != len(self.target_weights):
            raise ValueError(f"{len(self.token_ids)} tokens but {len(self.target_weights)} target weights")
        if any(self.target_weights[start] > 0 for start in (0, *(fork.start for fork in self.forks))):
            raise ValueError("the first token, and that of a fork, cannot be a target: no token before it predicts it")

    @property
    def num_targets(self) -> int:
        return len(self.target_weights) - self.target_weights.count(0.0)

    @property
    def longest_path(self) -> int:
        """The number of tokens of the longest sequence: the context that a model needs."""
        return max(sequence.length for sequence in sequences_of(len(self.token_ids), self.forks))

    def labels(self) -> list[int]:
        return labels_of(self.token_ids, self.target_weights)

    def path_to(self, end: int) -> list[int]:
        """Returns the numbers of the tokens that the token before `end` sees, itself the last."""
        sequences = sequences_of(len(self.token_ids), self.forks)
        spans = next(sequence.spans for sequence in sequences if sequence.spans[-1][0] < end <= sequence.spans[-1][1])
        return [number for start, stop in spans for number in range(start, min(stop, end))]

    def tokens_to(self, end: int) -> tuple[int, ...]:
        """Returns the tokens that the token before `end` sees, itself the last."""
        if not self.forks:
            return self.token_ids[:end]
        return tuple(self.token_ids[number] for number in self.path_to(end))

    def cut(self, length: int) -> RenderedConversation:
        """Returns the first `length` tokens; `length` must be one of turn_ends."""
        return RenderedConversation(
            token_ids=self.token_ids[:length],
            target_weights=self.target_weights[:length],
            turn_ends=tuple(end for end in self.turn_ends if end <= length),
            forks=tuple(fork for fork in self.forks if fork.start < length),
        )


class TreeSequence(NamedTuple):
    """One sequence of a tree: the tokens in `spans` (start, end), one after the other. Its own are those of the last span."""

    spans: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        return sum(end - start for start, end in self.spans)


def sequences_of(num_tokens: int, forks: Sequence[Fork]) -> Iterator[TreeSequence]:
    """Yields the sequences of a tree in order."""
    path: list[tuple[int, int]] = []
    ends = [fork.start for fork in forks] + [num_tokens]
    for fork, end in zip([Fork(0, 0), *forks], ends, strict=True):
        path = [*_cut_path(path, fork.depth), (fork.start, end)]
        yield TreeSequence(tuple(path))


def lengths_up_to(ends: Sequence[int], num_tokens: int, forks: Sequence[Fork]) -> list[int]:
    """Returns how many tokens lead to each of the `ends` of a tree, in order: those of its sequence up to there."""
    found = []
    for sequence in sequences_of(num_tokens, forks):
        start, stop = sequence.spans[-1]
        found += [sequence.length - (stop - end) for end in ends if start < end <= stop]
    return found


def merge_sequences(sequences: Sequence[tuple[Sequence[int], Sequence[float]]]) -> RenderedConversation:
    """Merges each sequence with the one before it, where they begin alike.

    Args:
        sequences: (token ids, target weights) of each scored turn, in order. Targets are the end of a sequence.
    """
    token_ids: list[int] = []
    weights: list[float] = []
    ends: list[int] = []
    forks: list[Fork] = []
    before: Sequence[int] = ()
    for ids, own_weights in sequences:
        # A sequence has its last prompt token for itself: then a token predicts one target at most.
        most = next(position for position, weight in enumerate(own_weights) if weight > 0) - 1
        shared = min(most, shared_prefix(before, ids))
        if before and shared < len(before):
            forks.append(Fork(len(token_ids), shared))
        token_ids.extend(ids[shared:])
        weights.extend(own_weights[shared:])
        ends.append(len(token_ids))
        before = ids
    return RenderedConversation(
        token_ids=tuple(token_ids),
        target_weights=tuple(weights),
        turn_ends=tuple(ends),
        forks=tuple(forks),
    )


def labels_of(token_ids: Sequence[int], target_weights: Sequence[float]) -> list[int]:
    """Returns token_ids[i] where it is a target, else IGNORE_INDEX. Not shifted: a model predicts i from i - 1."""
    return [token if weight > 0 else IGNORE_INDEX for token, weight in zip(token_ids, target_weights, strict=True)]


def _cut_path(path: Sequence[tuple[int, int]], depth: int) -> Iterator[tuple[int, int]]:
    """Yields the spans of the first `depth` tokens of a path."""
    for start, end in path:
        if depth <= 0:
            return
        yield start, min(end, start + depth)
        depth -= end - start
