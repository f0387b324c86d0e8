"""From files to checked conversations, with all problems of all files together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from components.conversations.layouts import LAYOUTS, LayoutError, detect_layout, group_of
from components.conversations.messages import Conversation
from components.conversations.problems import ConversationError, Problem
from components.conversations.rules import build
from components.conversations.sources import Record, content_digest, files_of, read_records

__all__ = ["ReadResult", "content_digest", "read_conversations"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """`dropped` is empty unless bad rows may be dropped."""

    conversations: tuple[Conversation, ...]
    dropped: tuple[Problem, ...]


def read_conversations(
    source: str | Sequence[str], *, format: str = "auto", on_bad_row: Literal["fail", "drop"] = "fail"
) -> ReadResult:
    """Reads a file, a list of files, a glob, or hf:DATASET[:SPLIT].

    Args:
        format: auto (by the keys of each file's first record that has any of them), messages, sharegpt, alpaca or nested.
        on_bad_row: fail raises with every bad record; drop leaves them out and returns what was wrong.

    Raises:
        ConversationError: a file that cannot be read at all, or (fail) any bad record, or nothing left.
    """
    conversations: list[Conversation] = []
    problems: list[Problem] = []
    unreadable: list[Problem] = []
    counts: dict[str, int] = {}
    for file in files_of(source):
        try:
            records, broken = read_records(file)
            layout = _layout_of(file, records, format)
        except ConversationError as error:
            unreadable.extend(error.problems)
            continue
        counts[file] = len(records) + len(broken)
        problems.extend(broken)
        for record in records:
            conversation, found = _read(record, layout)
            problems.extend(found)
            if conversation is not None:
                conversations.append(conversation)
    if unreadable or (problems and on_bad_row == "fail"):
        raise ConversationError([*unreadable, *problems], counts)
    if not conversations:
        empty = [Problem(file=file, place="", text="holds no conversations") for file in counts]
        raise ConversationError(problems or empty, counts if problems else {})
    return ReadResult(conversations=tuple(conversations), dropped=tuple(problems))


def _layout_of(file: str, records: list[Record], format: str) -> str:
    """By the first record whose keys tell; a bad one at the top of a file is still only one bad record."""
    if format != "auto" or not records:
        return format
    for record in records:
        if layout := detect_layout(record.value):
            return layout
    text = (
        'is in no known layout: records have "messages" (OpenAI), "conversations" (ShareGPT), "instruction" (Alpaca),'
        " or are lists of messages; say which by data.format"
    )
    raise ConversationError([Problem(file=file, place=records[0].place, text=text)], {})


def _read(record: Record, layout: str) -> tuple[Conversation | None, list[Problem]]:
    try:
        messages, tools = LAYOUTS[layout](record.value)
        group = group_of(record.value)
    except LayoutError as error:
        return None, [Problem(file=record.file, place=record.place, text=str(error))]
    conversation, texts = build(messages, tools, f"{record.file}, {record.place}")
    conversation = conversation and replace(conversation, group=group)
    return conversation, [Problem(file=record.file, place=record.place, text=text) for text in texts]
