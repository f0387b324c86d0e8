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
from hashlib import blake2b

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
HASHED_AT_ONCE, AT_ONCE = 2**15, 2**18  # shingles hashed, and pairs compared, together


@dataclass(frozen=True, slots=True)
class NearPair:
    """`index` says nearly the same as `other`; `similarity` is 1 where only case and blanks differ."""

    index: int
    other: int
    similarity: float


class NearDuplicates:
    """Knows N texts by number, each as `words_in` gives it. With a threshold of 1 only equal ones are near."""

    def __init__(self, texts: Sequence[bytes], *, threshold: float) -> None:
        self.threshold = threshold
        self._equals = [blake2b(text, digest_size=16).digest() for text in texts]
        self._shingles = _Shingles(texts if threshold < 1 else [])
        self._signatures, self._counts = _signatures(self._shingles)

    def find(self, indices: Sequence[int], others: Sequence[int]) -> dict[int, NearPair]:
        """Returns, by index, those of `indices` that are near one of `others`, with the first that was found."""
        found = self._equal(indices, others)
        if not len(self._counts):
            return found
        judged = self._counts >= FEWEST
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
        first: dict[bytes, int] = {}
        for other in others:
            first.setdefault(self._equals[other], other)
        alike = ((index, first.get(self._equals[index])) for index in indices)
        return {index: NearPair(index, other, 1.0) for index, other in alike if other is not None}


def words_in(conversation: Conversation) -> bytes:
    """What user and assistant say, calls included, without differences of case, blanks and width, in UTF-8."""
    said = " ".join(_words(message) for message in conversation.messages if message.role in ("user", "assistant"))
    plain = " ".join(unicodedata.normalize("NFKC", said).casefold().split())
    return plain.encode("utf-8", "surrogatepass")


def _words(message: Message) -> str:
    calls = [call.get("function", call) for call in message.tool_calls]
    written = [f"{call['name']} {json.dumps(call.get('arguments'), ensure_ascii=False)}" for call in calls]
    return " ".join([message.content, *written])


class _Shingles:
    """The shingles of N texts without boilerplate, made each time they are asked for: all at once need much memory."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        self._texts = texts
        table = np.zeros(TABLE, dtype=np.int32)
        for text in texts:
            table[_place(_mixed(_cut(text)))] += 1  # two shingles of one text in one place count once
        self._common = table > max(COMMON_SHARE * len(texts), COMMON_COUNT)

    def __len__(self) -> int:
        return len(self._texts)

    def hashed(self, index: int) -> np.ndarray:
        """Distinct, in no order, uint32 each."""
        return self._without_common(index)[1]

    def similarity(self, index: int, other: int) -> float:
        one, two = self._without_common(index)[0], self._without_common(other)[0]
        shared = len(np.intersect1d(one, two, assume_unique=True))
        return shared / (len(one) + len(two) - shared)

    def _without_common(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns shingles (distinct, sorted, uint64) and their hashes."""
        shingles = _cut(self._texts[index])
        mixed = _mixed(shingles)
        rare = ~self._common[_place(mixed)]
        return shingles[rare], mixed[rare]


def _cut(text: bytes) -> np.ndarray:
    """Distinct, sorted, uint64."""
    if len(text) < WIDTH:
        return np.zeros(0, dtype=np.uint64)
    windows: np.ndarray = np.ndarray(len(text) - WIDTH + 1, dtype=np.uint64, buffer=text, strides=(1,))
    shingles = np.sort(windows)
    distinct: np.ndarray = shingles[np.concatenate([[True], shingles[1:] != shingles[:-1]])]
    return distinct


def _mixed(shingles: np.ndarray) -> np.ndarray:
    """uint32 of uint64: each bit depends on all."""
    mixed: np.ndarray = shingles ^ (shingles >> np.uint64(33))
    mixed *= np.uint64(0xFF51AFD7ED558CCD)
    mixed ^= mixed >> np.uint64(33)
    mixed *= np.uint64(0xC4CEB9FE1A85EC53)
    mixed >>= np.uint64(32)
    high: np.ndarray = mixed.astype(np.uint32)
    return high


def _place(mixed: np.ndarray) -> np.ndarray:
    place: np.ndarray = mixed % np.uint32(TABLE)
    return place


def _signatures(shingles: _Shingles) -> tuple[np.ndarray, np.ndarray]:
    """Returns MinHash signatures, uint32 [N, P], and the numbers of shingles, int64 [N].

    Two conversations agree in each hash with the probability of their similarity.
    """
    generator = np.random.default_rng(0)
    flips = generator.integers(2**32, size=BANDS * ROWS, dtype=np.uint32)
    factors = generator.integers(2**31, size=BANDS * ROWS, dtype=np.uint32) * np.uint32(2) + np.uint32(1)
    signatures = np.zeros((len(shingles), BANDS * ROWS), dtype=np.uint32)
    counts = np.zeros(len(shingles), dtype=np.int64)
    for rows, many in _blocks(shingles):
        counts[rows] = [len(each) for each in many]
        hashed = np.concatenate(many)
        starts = np.cumsum(counts[rows]) - counts[rows]
        room = np.empty_like(hashed)  # it stays in the processor's cache
        least = np.empty((len(flips), len(rows)), dtype=np.uint32)
        for number, (flip, factor) in enumerate(zip(flips, factors, strict=True)):
            np.bitwise_xor(hashed, flip, out=room)
            np.multiply(room, factor, out=room)
            np.minimum.reduceat(room, starts, out=least[number])
        signatures[rows] = least.T
    return signatures, counts


def _blocks(shingles: _Shingles) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yields (texts that have shingles, their hashes), so many at a time that these are about HASHED_AT_ONCE."""
    rows: list[int] = []
    block: list[np.ndarray] = []
    total = 0
    for row in range(len(shingles)):
        hashed = shingles.hashed(row)
        if len(hashed):
            rows.append(row)
            block.append(hashed)
            total += len(hashed)
        if total >= HASHED_AT_ONCE:
            yield rows, block
            rows, block, total = [], [], 0
    if rows:
        yield rows, block


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
