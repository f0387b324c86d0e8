"""Reads conversations, and splits them into those to train on, those that rank trials, and those that the gate judges by."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

from components.conversations.readers.chunks import Chunk
from components.conversations.readers.data_problems import ConversationError, DataProblem
from components.conversations.readers.read import ChunkReading, ReadResult, ReadRules, read_chunk, read_source
from components.data.conversation_file import ConversationFile, Conversations, pack
from components.data.process_pool import ProcessPool, WorkPool
from components.data.sides import Sides, keep_apart
from components.data.split_errors import check_not_empty, check_some_left
from components.data.split_membership import mark_of
from components.experiment.spec import DataSpec
from components.statistics.paired_bootstrap import LEAST


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The sides, and what was left out.

    `verdict_note` says whether there is a verdict split, and why not if there is none.
    `unused_keys` and `ignored_keys` are unread keys with their numbers of conversations (see ReadResult).
    `left_out` has the location and the problems of each unusable record. `mended` has the location of each record that is
    used in part, and what was done to it; `mended_kinds` counts them by kind.
    """

    sides: Sides
    verdict_note: str
    left_out: tuple[str, ...]
    mended: tuple[str, ...]
    mended_kinds: dict[str, int]
    unused_keys: dict[str, int]
    ignored_keys: dict[str, int]

    @property
    def train(self) -> Conversations:
        return self.sides.train

    @property
    def eval(self) -> Conversations:
        return self.sides.eval

    @property
    def verdict(self) -> Conversations:
        """Nothing if there is no verdict split."""
        return self.sides.verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSide:
    """One of the sources. `read` has no conversations: these are in a file."""

    read: ReadResult
    conversations: Conversations


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """All conversations as they were read, once: they can be split with a verdict split and without."""

    data: DataSpec
    train: ReadSide
    eval: ReadSide | None
    verdict: ReadSide | None

    @property
    def contents(self) -> list[str | None]:
        """Digests of data.train, data.eval and data.verdict as they were read; None for what is not given."""
        return [None if side is None else side.read.digest for side in (self.train, self.eval, self.verdict)]

    def split(self, *, too_few: int | None = None) -> Split:
        """Splits all conversations. Equal ones count once, and what a held-out one says is never trained on.

        Args:
            too_few: without a verdict split, which could not decide: so many conversations would be needed.

        Raises InputError if a side would be empty.
        """
        data = self.data
        share = 0.0 if data.verdict is not None or too_few is not None else data.verdict_share
        train, held_out, verdict = self._by_mark(share)
        if share and data.verdict_is_automatic and len(verdict) < LEAST:
            return self.split(too_few=LEAST)
        check_not_empty(self._split_source, data, share, {"train": train, "eval": held_out, "verdict": verdict})
        if self.verdict is not None:
            verdict = self.verdict.conversations
        sides = keep_apart(train, held_out, verdict, threshold=data.near_duplicates)
        if share and data.verdict_is_automatic and len(sides.verdict) < LEAST:  # equal ones count once
            return self.split(too_few=LEAST)
        check_some_left(sides, data)
        reads = [side.read for side in (self.train, self.eval, self.verdict) if side is not None]
        return Split(
            sides=sides,
            verdict_note=_verdict_note(data, sides, too_few),
            left_out=_by_record([problem for read in reads for problem in read.dropped]),
            mended=_by_record([done for read in reads for done in read.mended]),
            mended_kinds=_sum(read.mended_kinds for read in reads),
            unused_keys=_sum(read.unused_keys for read in reads),
            ignored_keys=_sum(read.ignored_keys for read in reads),
        )

    @property
    def _split_source(self) -> Conversations:
        """What eval, or the verdict, is split off from."""
        return (self.train if self.eval is None else self.eval).conversations

    def _by_mark(self, share: float) -> tuple[Conversations, Conversations, Conversations]:
        """Returns (to train on, eval, verdict), each in file order; `share` is that of the verdict."""
        if self.eval is None:
            held_out, verdict, train = _cut(self._split_source, self.data.split_seed, self.data.eval_fraction, share)
            return train, held_out, verdict
        verdict, held_out = _cut(self._split_source, self.data.split_seed, share)
        return self.train.conversations, held_out, verdict


def read_records(data: DataSpec, pool: WorkPool | None = None) -> Records:
    """Reads all conversations. Raises ConversationError with the problems of all files together."""
    sides: list[ReadSide | None] = []
    errors: list[ConversationError] = []
    kept = ConversationFile()
    for source in (data.train, data.eval, data.verdict):
        try:
            sides.append(None if source is None else read_side(source, data, kept=kept, pool=pool))
        except ConversationError as error:
            errors.append(error)
    if errors:
        records = {file: count for error in errors for file, count in error.records.items()}
        raise ConversationError([problem for error in errors for problem in error.problems], records)
    train, held_out, verdict = sides
    assert train is not None
    return Records(data=data, train=train, eval=held_out, verdict=verdict)


def read_side(
    source: str | Sequence[str],
    data: DataSpec,
    *,
    drop: bool = False,
    kept: ConversationFile | None = None,
    pool: WorkPool | None = None,
) -> ReadSide:
    """Reads one of the sources by the rules of `data`.

    Args:
        drop: leaves bad records out whatever the rules say.
        kept: the conversations are appended to it; by default to a file of their own.
        pool: reads; by default this process does.
    """
    rules = ReadRules(
        on_bad_row="drop" if drop else data.on_bad_row,
        unknown_keys=data.unknown_keys,
        group_by=data.group_by,
        tag=data.tag,
    )
    file = ConversationFile() if kept is None else kept
    before = len(file)
    work = partial(_read_and_pack, rules)
    read = read_source(
        source,
        rules,
        format=data.format,
        read_chunks=lambda chunks: (pool or ProcessPool(1)).map(work, chunks),
        keep=file.extend,
    )
    return ReadSide(read=read, conversations=Conversations(file, range(before, len(file))))


def _read_and_pack(rules: ReadRules, chunk: Chunk) -> ChunkReading:
    reading = read_chunk(chunk, rules)
    return replace(reading, conversations=[pack(conversation) for conversation in reading.conversations])


def _cut(conversations: Conversations, seed: int, *shares: float) -> list[Conversations]:
    """Returns the conversations of each share, by their marks in this order, and the rest; each goes by itself alone."""
    parts: list[list[int]] = [[] for _ in (*shares, None)]
    ends = list(accumulate(shares))
    for index in range(len(conversations)):
        parts[bisect_right(ends, mark_of(conversations.keys(index), seed))].append(index)
    return [conversations.only(part) for part in parts]


def _verdict_note(data: DataSpec, sides: Sides, too_few: int | None) -> str:
    if sides.verdict:
        return f"the gate judges by {len(sides.verdict)} conversations that nothing before it sees (data.verdict)"
    if data.verdict_fraction == 0:
        why = "data.verdict_fraction=0"
    elif too_few is None:
        why = f"as large as data.eval_fraction={data.eval_fraction}, it would leave less than half to train on"
    else:
        why = f"{data.verdict_share:g} of {'data.train' if data.eval is None else 'data.eval'} is less than the"
        why += f" {too_few} conversations like these that can decide"
    return (
        f"no verdict split ({why}): the gate judges by eval, which chose the trial, and corrects for that; data.verdict or"
        " data.verdict_fraction makes one"
    )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def _by_record(problems: Sequence[DataProblem]) -> tuple[str, ...]:
    """Returns one line per record with all of its problems."""
    texts: dict[str, list[str]] = {}
    for problem in problems:
        texts.setdefault(f"{problem.file}, {problem.location}", []).append(problem.text)
    return tuple(f"{location}: {'; '.join(found)}" for location, found in texts.items())
