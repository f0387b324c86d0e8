"""From files to checked conversations, with all problems of all files together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from components.conversations.messages import Conversation
from components.conversations.readers.errors import ConversationError, Problem
from components.conversations.readers.raw_message import RecordFormatError
from components.conversations.readers.record_formats import LAYOUTS, detect_record_format
from components.conversations.readers.sources import Record, content_digest, digest_of_files, files_of, read_records
from components.conversations.readers.validation import Checked, check

__all__ = ["ReadResult", "content_digest", "read_conversations"]

OnUnknownKeys = Literal["fail", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """`dropped` is empty unless bad rows may be dropped.

    Both count conversations: `unused_keys` by the keys of records that change no token (`id`), `ignored_keys` by those
    that might have changed some (`message.timestamp`; none unless unknown keys are to be ignored). `digest` is that of the
    bytes that were read: it equals content_digest(source) unless the source has changed.
    """

    conversations: tuple[Conversation, ...]
    dropped: tuple[Problem, ...]
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
        on_bad_row: fail raises with every bad record; drop leaves them out and returns what was wrong.
        unknown_keys: whether a key that is not understood makes a record bad, where it might change what is trained;
            those of a whole record that change no token are only counted.

    Raises:
        ConversationError: a file that cannot be read at all, or (fail) any bad record, or nothing left.
    """
    conversations: list[Conversation] = []
    problems: list[Problem] = []
    unreadable: list[Problem] = []
    counts: dict[str, int] = {}
    digests: list[str] = []
    unused: Counter[str] = Counter()
    ignored: Counter[str] = Counter()
    for file in files_of(source):
        try:
            content = read_records(file)
            layout = _layout_of(file, content.records, format)
        except ConversationError as error:
            unreadable.extend(error.problems)
            continue
        counts[file] = len(content.records) + len({problem.place for problem in content.problems})
        digests.append(content.digest)
        problems.extend(content.problems)
        for record in content.records:
            checked, notes = _read(record, layout, unknown_keys)
            problems.extend(Problem(file=record.file, place=record.place, text=text) for text in checked.problems)
            if checked.conversation is not None:
                conversations.append(checked.conversation)
                unused.update(notes)
                ignored.update({key.where for key in checked.unknown})
    if unreadable or (problems and on_bad_row == "fail"):
        raise ConversationError([*unreadable, *problems], counts)
    if not conversations:
        empty = [Problem(file=file, place="", text="holds no conversations") for file in counts]
        raise ConversationError(problems or empty, counts if problems else {})
    return ReadResult(
        conversations=tuple(conversations),
        dropped=tuple(problems),
        unused_keys=dict(sorted(unused.items())),
        ignored_keys=dict(sorted(ignored.items())),
        digest=digest_of_files(digests),
    )


def _layout_of(file: str, records: Sequence[Record], format: str) -> str:
    """By the first record whose keys tell; a bad one at the top of a file is still only one bad record."""
    if format != "auto" or not records:
        return format
    for record in records:
        if layout := detect_record_format(record.value):
            return layout
    text = (
        'is in no known layout: records have "messages" (OpenAI), "conversations" (ShareGPT), "instruction" (Alpaca),'
        ' "prompt" and "response" (pairs), or are lists of messages; say which by data.format'
    )
    raise ConversationError([Problem(file=file, place=records[0].place, text=text)], {})


def _read(record: Record, layout: str, on_unknown: OnUnknownKeys) -> tuple[Checked, list[str]]:
    """What was found, and the record's keys that change no token."""
    try:
        raw = LAYOUTS[layout](record.value)
    except RecordFormatError as error:
        return Checked(conversation=None, problems=[str(error)], unknown=[]), []
    checked = check(raw, f"{record.file}, {record.place}")
    if on_unknown == "fail" and checked.unknown:
        problems = [*checked.problems, *(key.text for key in checked.unknown)]
        checked = Checked(conversation=None, problems=problems, unknown=[])
    return checked, raw.notes
