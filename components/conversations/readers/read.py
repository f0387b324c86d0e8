"""Reads files into validated conversations, and reports all problems of all files together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import ConversationError, DataProblem, of_one_record
from components.conversations.readers.groups import add_group
from components.conversations.readers.mending import mend
from components.conversations.readers.raw_message import RecordFormatError
from components.conversations.readers.record_formats import RECORD_FORMATS, RawConversation, detect_record_format
from components.conversations.readers.sources import (
    SourceRecord,
    content_digest,
    digest_of_files,
    files_of,
    read_records,
)
from components.conversations.readers.unknown_keys import is_absent
from components.conversations.readers.validation import Validation, validate

__all__ = ["ReadResult", "content_digest", "read_conversations"]

OnBadRow = Literal["fail", "drop"]
OnUnknownKeys = Literal["fail", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """`dropped` and `mended` are empty unless bad rows are dropped.

    `mended` says what was left out of conversations, or merged in them; `mended_kinds` counts them by the kinds of
    mending.py. `unused_keys` and `ignored_keys` count conversations by key. Unused keys change no token (`id`). Ignored
    keys might change some (`message.timestamp`); there are none unless unknown keys are ignored. `digest` is that of the
    bytes that were read: it equals content_digest(source) unless the source has changed since.
    """

    conversations: tuple[Conversation, ...]
    dropped: tuple[DataProblem, ...]
    mended: tuple[DataProblem, ...] = ()
    mended_kinds: dict[str, int] = field(default_factory=dict)
    unused_keys: dict[str, int] = field(default_factory=dict)
    ignored_keys: dict[str, int] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What one record gave: a conversation, or problems."""

    conversation: Conversation | None = None
    problems: Sequence[str] = ()
    mended: DataProblem | None = None
    mended_kinds: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ()


def read_conversations(
    source: str | Sequence[str],
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "fail",
    unknown_keys: OnUnknownKeys = "fail",
    group_by: str | None = None,
    tag: str | None = None,
) -> ReadResult:
    """Reads a file, a list of files, a glob, or hf:DATASET[:SPLIT][@REVISION].

    Args:
        format: auto (by the keys of each file's first record that has any of them), messages, sharegpt, alpaca, pairs or
            nested.
        on_bad_row: fail raises with every bad record; drop mends those in which only the order of messages is wrong (see
            mending.py), skips the others, and returns what was done and their problems.
        unknown_keys: fail makes a record bad if an unknown key might change what is trained; unknown keys of a whole
            record that change no token are only counted.
        group_by: the field of each record whose value is its group; by default `group`, which a record may lack.
        tag: the key of a record whose value becomes the conversation's tag, where it has one.

    Raises:
        ConversationError: a file that cannot be read at all, or (fail) any bad record, or nothing left.
    """
    readings: list[_Reading] = []
    problems: list[DataProblem] = []
    unreadable: list[DataProblem] = []
    counts: dict[str, int] = {}
    digests: list[str] = []
    for file in files_of(source):
        try:
            content = read_records(file)
            record_format = _record_format_of(file, content.records, format)
        except ConversationError as error:
            unreadable.extend(error.problems)
            continue
        counts[file] = len(content.records) + len({problem.location for problem in content.problems})
        digests.append(content.digest)
        problems.extend(content.problems)
        for record in content.records:
            reading = _read(record, record_format, on_bad_row, unknown_keys, group_by)
            reading = _with_tag(reading, record.value, tag)
            problems.extend(map(record.problem, of_one_record(reading.problems)))
            readings.append(reading)
    if unreadable or (problems and on_bad_row == "fail"):
        raise ConversationError([*unreadable, *problems], counts)
    read = [reading for reading in readings if reading.conversation is not None]
    if not read:
        empty = [DataProblem(file=file, location="", text="holds no conversations") for file in counts]
        raise ConversationError(problems or empty, counts if problems else {})
    return ReadResult(
        conversations=tuple(reading.conversation for reading in read if reading.conversation is not None),
        dropped=tuple(problems),
        mended=tuple(reading.mended for reading in read if reading.mended is not None),
        mended_kinds=_counts(reading.mended_kinds for reading in read),
        unused_keys=_counts(reading.unused_keys for reading in read),
        ignored_keys=_counts(reading.ignored_keys for reading in read),
        digest=digest_of_files(digests),
    )


def _with_tag(reading: _Reading, record: Any, key: str | None) -> _Reading:
    """Returns the reading with the conversation's tag; with a problem instead if the record's value is no label."""
    value = record.get(key) if key is not None and isinstance(record, dict) else None
    if key is None or is_absent(value):
        return reading
    unused = tuple(note for note in reading.unused_keys if note != key)
    if not isinstance(value, str | int | float):
        text = (
            f'"{key}" is the tag (data.tag) and must be a text, a number or a truth value, not {type(value).__name__}'
        )
        return _Reading(problems=[*reading.problems, text])
    if reading.conversation is None:
        return reading
    label = str(value).lower() if isinstance(value, bool) else str(value)  # as JSON has it
    return replace(reading, conversation=replace(reading.conversation, tag=label), unused_keys=unused)


def _counts(names: Iterable[Iterable[str]]) -> dict[str, int]:
    return dict(sorted(Counter(chain.from_iterable(names)).items()))


def _record_format_of(file: str, records: Sequence[SourceRecord], format: str) -> str:
    """Detects the format by the first record whose keys determine one: a bad first record does not hide it."""
    if format != "auto" or not records:
        return format
    for record in records:
        if record_format := detect_record_format(record.value):
            return record_format
    text = (
        'is in no known layout: records have "messages" (OpenAI), "conversations" (ShareGPT), "instruction" (Alpaca),'
        ' "prompt" and "response" (pairs), or are lists of messages; say which by data.format'
    )
    raise ConversationError([DataProblem(file=file, location=records[0].location, text=text)], {})


def _read(
    record: SourceRecord, record_format: str, on_bad_row: OnBadRow, on_unknown: OnUnknownKeys, group_by: str | None
) -> _Reading:
    """Reads one record. Whatever that raises is a problem of this record, and the others are read on."""
    try:
        return _checked(record, record_format, on_bad_row, on_unknown, group_by)
    except RecordFormatError as error:
        return _Reading(problems=[str(error)])
    except Exception as error:  # noqa: BLE001 - a record holds anything, also what no rule has foreseen
        return _Reading(problems=[f"cannot be read ({type(error).__name__}: {error})"])


def _checked(
    record: SourceRecord, record_format: str, on_bad_row: OnBadRow, on_unknown: OnUnknownKeys, group_by: str | None
) -> _Reading:
    raw = add_group(RECORD_FORMATS[record_format](record.value), record.value, group_by)
    source = f"{record.file}, {record.location}"
    validation = _validated(raw, source, on_unknown)
    if validation.conversation is not None:
        return _reading(validation, raw)
    messages, mends = mend(raw.messages)
    mended = _validated(replace(raw, messages=messages), source, on_unknown) if mends else validation
    if mended.conversation is None:
        return _Reading(problems=validation.problems)
    done = "; ".join(each.text for each in mends)
    if on_bad_row == "fail":
        *others, last = validation.problems
        return _Reading(problems=[*others, f"{last}; with data.on_bad_row=drop {done}"])
    return replace(
        _reading(mended, raw), mended=record.problem(done), mended_kinds=tuple({each.kind for each in mends})
    )


def _reading(validation: Validation, raw: RawConversation) -> _Reading:
    ignored = tuple({key.where for key in validation.unknown})
    return _Reading(conversation=validation.conversation, unused_keys=tuple(raw.notes), ignored_keys=ignored)


def _validated(raw: RawConversation, source: str, on_unknown: OnUnknownKeys) -> Validation:
    validation = validate(raw, source)
    if on_unknown == "fail" and validation.unknown:
        problems = [*validation.problems, *(key.text for key in validation.unknown)]
        return Validation(conversation=None, problems=problems, unknown=[])
    return validation
