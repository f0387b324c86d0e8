"""Splits conversations into those to train on and those to hold out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import DataProblem
from components.conversations.readers.read import ReadResult, read_conversations
from components.data.split_membership import fraction_that_holds_out, fraction_that_leaves, keys_of, mark_of
from components.errors import InputError
from components.experiment.spec import DataSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """The two sides, and what was left out.

    `contents` are the digests of data.train and data.eval as they were read; `None` if data.eval is not given.
    `unused_keys` and `ignored_keys` are unread keys with their numbers of conversations (see ReadResult).
    `left_out` has the location and the problems of each unusable record; equal conversations are only counted. `mended`
    has the location of each record that is used in part, and what was done to it; `mended_kinds` counts them by kind.
    `leaked` counts conversations to train on that were removed because their text or their group is held out.
    """

    train: tuple[Conversation, ...]
    eval: tuple[Conversation, ...]
    left_out: tuple[str, ...]
    mended: tuple[str, ...]
    mended_kinds: dict[str, int]
    duplicates: int
    leaked: int
    contents: tuple[str | None, str | None]
    unused_keys: dict[str, int]
    ignored_keys: dict[str, int]


def read_and_split(data: DataSpec) -> Split:
    """Reads and splits all conversations. Equal ones count once, and the text of a held-out one is never trained on.

    Raises InputError with all problems of the conversations, or if one side would be empty.
    """
    read = _read(data.train, data)
    held = None if data.eval is None else _read(data.eval, data)
    reads = [read] if held is None else [read, held]
    held_out, rest = _sides(read.conversations, data) if held is None else (held.conversations, read.conversations)
    held_out, held_out_duplicates = _deduplicate(held_out)
    rest, rest_duplicates = _deduplicate(rest)
    known = {key for conversation in held_out for key in keys_of(conversation)}
    train = [conversation for conversation in rest if known.isdisjoint(keys_of(conversation))]
    if not train:
        raise InputError("data.train: every conversation is held out as well, so there is none to train on")
    return Split(
        train=tuple(train),
        eval=tuple(held_out),
        left_out=_by_record([problem for each in reads for problem in each.dropped]),
        mended=_by_record([done for each in reads for done in each.mended]),
        mended_kinds=_sum(each.mended_kinds for each in reads),
        duplicates=held_out_duplicates + rest_duplicates,
        leaked=len(rest) - len(train),
        contents=(read.digest, None if held is None else held.digest),
        unused_keys=_sum(each.unused_keys for each in reads),
        ignored_keys=_sum(each.ignored_keys for each in reads),
    )


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter()))


def _read(source: str | Sequence[str], data: DataSpec) -> ReadResult:
    return read_conversations(
        source, format=data.format, on_bad_row=data.on_bad_row, unknown_keys=data.unknown_keys, tag=data.tag
    )


def _by_record(problems: Sequence[DataProblem]) -> tuple[str, ...]:
    """Returns one line per record with all of its problems."""
    texts: dict[str, list[str]] = {}
    for problem in problems:
        texts.setdefault(f"{problem.file}, {problem.location}", []).append(problem.text)
    return tuple(f"{location}: {'; '.join(found)}" for location, found in texts.items())


def _sides(
    conversations: Sequence[Conversation], data: DataSpec
) -> tuple[Sequence[Conversation], Sequence[Conversation]]:
    """Returns (held out, the rest), each in file order. The side of a conversation depends on that conversation only."""
    marks = [mark_of(keys_of(conversation), data.split_seed) for conversation in conversations]
    held_out = [each for each, mark in zip(conversations, marks, strict=True) if mark < data.eval_fraction]
    rest = [each for each, mark in zip(conversations, marks, strict=True) if mark >= data.eval_fraction]
    if held_out and rest:
        return held_out, rest
    distinct = set(marks)
    if len(distinct) < 2:
        raise InputError(
            f"data.train: {len(distinct)} distinct conversation (or group of them) cannot be split into train and eval;"
            " add conversations, or give data.eval"
        )
    found, wanted, enough = (
        ("leaves none to train on", "leaves some", fraction_that_leaves(1, distinct))
        if held_out
        else ("holds out none", "holds out some", fraction_that_holds_out(1, distinct))
    )
    raise InputError(
        f"data.eval_fraction={data.eval_fraction} {found} of {len(distinct)} distinct conversations (or groups), for where"
        f" each goes depends on itself alone; {enough} {wanted}; or add conversations, or give data.eval"
    )


def _deduplicate(conversations: Sequence[Conversation]) -> tuple[list[Conversation], int]:
    """Returns (distinct conversations, number of duplicates). Equal conversations have the same tokens in every format."""
    first: dict[str, Conversation] = {}
    for conversation in conversations:
        content = asdict(replace(conversation, source="", group=None, tag=None))
        first.setdefault(json.dumps(content, sort_keys=True), conversation)
    return list(first.values()), len(conversations) - len(first)
