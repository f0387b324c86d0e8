"""The records of a file in chunks, so that several processes can parse and check them, and none holds a large file whole."""

from __future__ import annotations

import codecs
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from components.conversations.readers.data_problems import ConversationError, DataProblem
from components.conversations.readers.record_formats import detect_record_format
from components.conversations.readers.sources import SourceRecord, parse_lines, read_records, refuses_unreadable
from components.storage.uri import is_remote

RECORDS = 256  # of a chunk
BYTES = 4_000_000  # of lines, beyond which a chunk takes no other


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Records of one file that follow each other: lines of JSON from the line `first` on, or `records` that are parsed.

    `problems` are those of records that could not be parsed.
    """

    file: str
    record_format: str
    lines: Sequence[bytes] = ()
    first: int = 1
    records: Sequence[SourceRecord] = ()
    problems: Sequence[DataProblem] = ()

    def __len__(self) -> int:
        return len(self.lines) + len(self.records)

    def parse(self) -> tuple[Sequence[SourceRecord], Sequence[DataProblem]]:
        """Returns the records, and the problems of those that cannot be parsed."""
        return parse_lines(self.file, self.lines, self.first) if self.lines else (self.records, self.problems)


class ChunkedFile:
    """A file, read while its chunks are asked for, once. Then `digest` is that of its bytes.

    Args:
        format: of its records; auto detects it by the first record whose keys determine one.
        every: n reads only every n-th record (of JSONL: line), as a sample, which has no digest.

    Reading raises ConversationError if none of it can be read.
    """

    def __init__(self, file: str, format: str, *, every: int = 1) -> None:
        self.file, self.format, self.every = file, format, every
        self.digest = ""

    def __iter__(self) -> Iterator[Chunk]:
        if Path(self.file).suffix.lower() == ".jsonl" and not is_remote(self.file):
            return self._lines() if self.every == 1 else self._some_of_the_lines()
        return self._records()

    def _records(self) -> Iterator[Chunk]:
        content = read_records(self.file, every=self.every)
        self.digest = content.digest if self.every == 1 else ""
        detected = _detected(self.file, content.records, self.format)
        if content.problems:
            yield Chunk(file=self.file, record_format=detected, problems=content.problems)
        for start in range(0, len(content.records), RECORDS):
            yield Chunk(file=self.file, record_format=detected, records=content.records[start : start + RECORDS])

    def _lines(self) -> Iterator[Chunk]:
        hashed, first = hashlib.sha256(), 1
        with refuses_unreadable(self.file), Path(self.file).open("rb") as file:
            detected = _detected(self.file, _records_in(self.file), self.format)
            while lines := _some_lines(file):
                for line in lines:
                    hashed.update(line)
                if first == 1:
                    lines[0] = lines[0].removeprefix(codecs.BOM_UTF8)
                yield Chunk(file=self.file, record_format=detected, lines=lines, first=first)
                first += len(lines)
        self.digest = hashed.hexdigest()

    def _some_of_the_lines(self) -> Iterator[Chunk]:
        with refuses_unreadable(self.file), Path(self.file).open("rb") as file:
            detected = _detected(self.file, _records_in(self.file), self.format)
            for index, line in enumerate(itertools.islice(file, None, None, self.every)):
                lines = [line.removeprefix(codecs.BOM_UTF8) if index == 0 else line]
                yield Chunk(file=self.file, record_format=detected, lines=lines, first=1 + index * self.every)


def _some_lines(file: IO[bytes]) -> list[bytes]:
    lines, size = [], 0
    for line in itertools.islice(file, RECORDS):
        lines.append(line)
        size += len(line)
        if size > BYTES:
            break
    return lines


def _records_in(file: str) -> Iterator[SourceRecord]:
    with Path(file).open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            yield from parse_lines(file, [line.removeprefix(codecs.BOM_UTF8) if number == 1 else line], number)[0]


def _detected(file: str, records: Iterable[SourceRecord], format: str) -> str:
    """Detects the format by the first record whose keys determine one: a bad first record does not hide it."""
    if format != "auto":
        return format
    first: SourceRecord | None = None
    for record in records:
        first = first or record
        if record_format := detect_record_format(record.value):
            return record_format
    if first is None:
        return format
    text = (
        'is in no known layout: records have "messages" (OpenAI), "conversations" (ShareGPT), "instruction" (Alpaca),'
        ' "prompt" and "response" (pairs), or are lists of messages; say which by data.format'
    )
    raise ConversationError([DataProblem(file=file, location=first.location, text=text)], {})
