"""Finds conversations that say nearly the same as others: MinHash proposes pairs, and each of these is compared whole.

What users and assistants say is cut into shingles: each WIDTH bytes of UTF-8 in a row, eight letters or some three Chinese
characters, in whatever language. Two conversations are near if the shingles they share are at least `threshold` of those
that either has (Jaccard). N conversations, P hashes.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from components.conversations.messages import Conversation, Message

WIDTH = 8  # bytes: a shingle is one 64-bit number
# Shingles that more than this share of conversations have, and more than so many, are boilerplate: they prove nothing.
COMMON_SHARE, COMMON_COUNT = 0.05, 20
FEWEST = 64  # with fewer shingles, two conversations are alike by chance: these are near only if their words are equal
# Of 24 bands of 4 hashes one is equal with probability 99.9 % at a similarity of 0.7, 2 % at 0.17.
BANDS, ROWS = 24, 4
SLACK = 0.2  # an estimate by 96 hashes is off by 0.05 in one case of three
TABLE = 2**22  # counts of shingles by hash; that some share a place adds little
AT_ONCE = 2**18  # shingles hashed, or pairs compared, together


@dataclass(frozen=True, slots=True)
class NearPair:
    """`index` says nearly the same as `other`; `similarity` is 1 where only case and blanks differ."""

    index: int
    other: int
    similarity: float


class NearDuplicates:
    """Knows N conversations by number. With a threshold of 1 only those of equal words are near."""

    def __init__(self, conversations: Sequence[Conversation], *, threshold: float) -> None:
        self.threshold = threshold
        self._texts = [words_of(conversation) for conversation in conversations]
        self._shingles = _Shingles(self._texts if threshold < 1 else [])
        self._signatures = _signatures(self._shingles)

    def find(self, indices: Sequence[int], others: Sequence[int]) -> dict[int, NearPair]:
        """Returns, by index, those of `indices` that are near one of `others`, with the first that was found."""
        found = self._equal(indices, others)
        if not self._shingles.counts:
            return found
        judged = np.array(self._shingles.counts) >= FEWEST
        mine, theirs = (np.array([each for each in side if judged[each]], dtype=np.int64) for side in (indices, others))
        refuted: set[tuple[int, int]] = set()  # bands propose a pair again and again
        for band in range(BANDS):
            mine = np.array([index for index in mine.tolist() if index not in found], dtype=np.int64)
            for index, other in _candidates(self._signatures, mine, theirs, band, self.threshold):
                if index in found or (index, other) in refuted:
                    continue
                if (similarity := self._shingles.similarity(index, other)) >= self.threshold:
                    found[index] = NearPair(index, other, similarity)
                else:
                    refuted.add((index, other))
        return found

    def _equal(self, indices: Sequence[int], others: Sequence[int]) -> dict[int, NearPair]:
        first: dict[str, int] = {}
        for other in others:
            first.setdefault(self._texts[other], other)
        alike = ((index, first.get(self._texts[index])) for index in indices)
        return {index: NearPair(index, other, 1.0) for index, other in alike if other is not None}


def words_of(conversation: Conversation) -> str:
    """What user and assistant say, calls included, without differences of case, blanks and width."""
    said = " ".join(_words(message) for message in conversation.messages if message.role in ("user", "assistant"))
    return " ".join(unicodedata.normalize("NFKC", said).casefold().split())


def _words(message: Message) -> str:
    calls = [call.get("function", call) for call in message.tool_calls]
    written = [f"{call['name']} {json.dumps(call.get('arguments'), ensure_ascii=False)}" for call in calls]
    return " ".join([message.content, *written])


class _Shingles:
    """The shingles of N texts without boilerplate, made each time they are asked for: all at once need much memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
        table = np.zeros(TABLE, dtype=np.int32)
        for encoded in self._encoded:
            table[_place(_cut(encoded))] += 1  # two shingles of one text in one place count once
        most = max(COMMON_SHARE * len(texts), COMMON_COUNT)
        self._common = table > most
        self.counts = [len(self[index]) for index in range(len(texts))]

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, index: int) -> np.ndarray:
        """Distinct, sorted, uint64."""
        shingles = _cut(self._encoded[index])
        told: np.ndarray = shingles[~self._common[_place(shingles)]]
        return told

    def similarity(self, index: int, other: int) -> float:
        one, two = self[index], self[other]
        shared = len(np.intersect1d(one, two, assume_unique=True))
        return shared / (len(one) + len(two) - shared)


def _cut(encoded: bytes) -> np.ndarray:
    if len(encoded) < WIDTH:
        return np.zeros(0, dtype=np.uint64)
    windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(encoded, dtype=np.uint8), WIDTH)
    shingles = np.sort(np.ascontiguousarray(windows).view(np.uint64)[:, 0])
    distinct: np.ndarray = shingles[np.concatenate([[True], shingles[1:] != shingles[:-1]])]
    return distinct


def _mixed(shingles: np.ndarray) -> np.ndarray:
    """uint32 of uint64: each bit depends on all."""
    mixed: np.ndarray = shingles ^ (shingles >> np.uint64(33))
    mixed = mixed * np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed = mixed * np.uint64(0xC4CEB9FE1A85EC53)
    high: np.ndarray = (mixed >> np.uint64(32)).astype(np.uint32)
    return high


def _place(shingles: np.ndarray) -> np.ndarray:
    place: np.ndarray = _mixed(shingles) % np.uint32(TABLE)
    return place


def _signatures(shingles: _Shingles) -> np.ndarray:
    """MinHash signatures, uint32 [N, P]: two conversations agree in each with the probability of their similarity."""
    generator = np.random.default_rng(0)
    flips = generator.integers(2**32, size=BANDS * ROWS, dtype=np.uint32)
    factors = generator.integers(2**31, size=BANDS * ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    signatures = np.zeros((len(shingles), BANDS * ROWS), dtype=np.uint32)
    for rows in _blocks(shingles.counts):
        hashed = np.concatenate([_mixed(shingles[row]) for row in rows])
        starts = np.cumsum([0, *(shingles.counts[row] for row in rows[:-1])])
        for number, (flip, factor) in enumerate(zip(flips, factors, strict=True)):
            signatures[rows, number] = np.minimum.reduceat((hashed ^ flip) * factor, starts)
    return signatures


def _blocks(counts: Sequence[int]) -> Iterator[list[int]]:
    """Yields texts that have shingles, so many at a time that their shingles are about AT_ONCE."""
    block: list[int] = []
    total = 0
    for row, count in enumerate(counts):
        if count:
            block.append(row)
            total += count
        if total >= AT_ONCE:
            yield block
            block, total = [], 0
    if block:
        yield block


def _candidates(
    signatures: np.ndarray, mine: np.ndarray, theirs: np.ndarray, band: int, threshold: float
) -> Iterator[tuple[int, int]]:
    """Yields (one of mine, one of theirs) that agree in a band, and in so many hashes that they may be near."""
    factors = np.random.default_rng(1).integers(2**63, size=ROWS, dtype=np.uint64)
    keys = (signatures[:, band * ROWS : (band + 1) * ROWS] * factors).sum(axis=1, dtype=np.uint64)
    theirs = theirs[np.argsort(keys[theirs], kind="stable")]
    first, end = (np.searchsorted(keys[theirs], keys[mine], side=side) for side in ("left", "right"))
    pairs = np.concatenate([[0], np.cumsum(end - first)])
    start = 0
    while start < len(mine):
        stop = max(start + 1, int(np.searchsorted(pairs, pairs[start] + AT_ONCE, side="right")) - 1)
        many = end[start:stop] - first[start:stop]
        one = np.repeat(mine[start:stop], many)
        within = np.arange(len(one)) - np.repeat(pairs[start:stop] - pairs[start], many)
        other = theirs[np.repeat(first[start:stop], many) + within]
        agree = sum((signatures[one, number] == signatures[other, number] for number in range(BANDS * ROWS)), 0 * one)
        likely = agree >= (threshold - SLACK) * BANDS * ROWS
        yield from zip(one[likely].tolist(), other[likely].tolist(), strict=True)
        start = stop
