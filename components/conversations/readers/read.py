"""Reads files into validated conversations, and reports all problems of all files together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from components.conversations.messages import Conversation
from components.conversations.readers.data_problems import ConversationError, DataProblem
from components.conversations.readers.raw_message import RecordFormatError
from components.conversations.readers.record_formats import RECORD_FORMATS, detect_record_format
from components.conversations.readers.sources import (
    SourceRecord,
    content_digest,
    digest_of_files,
    files_of,
    read_records,
)
from components.conversations.readers.validation import Validation, validate

__all__ = ["ReadResult", "content_digest", "read_conversations"]

OnUnknownKeys = Literal["fail", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """`dropped` is empty unless bad rows are dropped.

    `unused_keys` and `ignored_keys` count conversations by key. Unused keys change no token (`id`). Ignored keys might
    change some (`message.timestamp`); there are none unless unknown keys are ignored. `digest` is that of the bytes that
    were read: it equals content_digest(source) unless the source has changed since.
    """

    conversations: tuple[Conversation, ...]
    dropped: tuple[DataProblem, ...]
    unused_keys: dict[str, int] = field(default_factory=dict)
    ignored_keys: dict[str, int] = field(default_factory=dict)
    digest: str = ""


def read_conversations(
    source: str | Sequence[str],
    *,
    format: str = "auto",
    on_bad_row: Literal["fail", "drop"] = "fail",
    unknown_keys: OnUnknownKeys = "fail",
) -> ReadResult:
    """Reads a file, a list of files, a glob, or hf:DATASET[:SPLIT][@REVISION].

    Args:
        format: auto (by the keys of each file's first record that has any of them), messages, sharegpt, alpaca, pairs or
            nested.
        on_bad_row: fail raises with every bad record; drop skips them and returns their problems.
        unknown_keys: fail makes a record bad if an unknown key might change what is trained; unknown keys of a whole
            record that change no token are only counted.

    Raises:
        ConversationError: a file that cannot be read at all, or (fail) any bad record, or nothing left.
    """
    conversations: list[Conversation] = []
    problems: list[DataProblem] = []
    unreadable: list[DataProblem] = []
    counts: dict[str, int] = {}
    digests: list[str] = []
    unused: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
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
            validation, notes = _read(record, record_format, unknown_keys)
            problems.extend(
                DataProblem(file=record.file, location=record.location, text=text) for text in validation.problems
            )
            if validation.conversation is not None:
                conversations.append(validation.conversation)
                unused.update(notes)
                ignored.update({key.where for key in validation.unknown})
    if unreadable or (problems and on_bad_row == "fail"):
        raise ConversationError([*unreadable, *problems], counts)
    if not conversations:
        empty = [DataProblem(file=file, location="", text="holds no conversations") for file in counts]
        raise ConversationError(problems or empty, counts if problems else {})
    return ReadResult(
        conversations=tuple(conversations),
        dropped=tuple(problems),
        unused_keys=dict(sorted(unused.items())),
        ignored_keys=dict(sorted(ignored.items())),
        digest=digest_of_files(digests),
    )


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


def _read(record: SourceRecord, record_format: str, on_unknown: OnUnknownKeys) -> tuple[Validation, list[str]]:
    """Returns the validation of a record, and the record's keys that change no token."""
    try:
        raw = RECORD_FORMATS[record_format](record.value)
    except RecordFormatError as error:
        return Validation(conversation=None, problems=[str(error)], unknown=[]), []
    validation = validate(raw, f"{record.file}, {record.location}")
    if on_unknown == "fail" and validation.unknown:
        problems = [*validation.problems, *(key.text for key in validation.unknown)]
        validation = Validation(conversation=None, problems=problems, unknown=[])
    return validation, raw.notes
