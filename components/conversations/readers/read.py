"""Reads files into validated conversations, and reports all problems of all files together."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Literal

from components.conversations.messages import Conversation
from components.conversations.readers.chunks import Chunk, ChunkedFile
from components.conversations.readers.data_problems import ConversationError, DataProblem, of_one_record
from components.conversations.readers.groups import add_group
from components.conversations.readers.mending import mend
from components.conversations.readers.raw_message import RecordFormatError
from components.conversations.readers.record_formats import RECORD_FORMATS, RawConversation
from components.conversations.readers.sources import SourceRecord, content_digest, digest_of_files, files_of
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

    conversations: Sequence[Conversation]
    dropped: tuple[DataProblem, ...]
    mended: tuple[DataProblem, ...] = ()
    mended_kinds: dict[str, int] = field(default_factory=dict)
    unused_keys: dict[str, int] = field(default_factory=dict)
    ignored_keys: dict[str, int] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRules:
    """As the arguments of read_conversations."""

    on_bad_row: OnBadRow = "fail"
    unknown_keys: OnUnknownKeys = "fail"
    group_by: str | None = None
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reading:
    """What one record gave: a conversation, or problems."""

    conversation: Conversation | None = None
    problems: Sequence[str] = ()
    mended: DataProblem | None = None
    mended_kinds: tuple[str, ...] = ()
    unused_keys: tuple[str, ...] = ()
    ignored_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkReading:
    """What a chunk of a file gave. `unparsed` are problems of records that could not even be parsed; `records` counts all.

    `conversations` are those that can be used, or what somebody made of each.
    """

    records: int
    conversations: Sequence[Any]
    unparsed: Sequence[DataProblem]
    problems: Sequence[DataProblem]
    mended: Sequence[DataProblem]
    mended_kinds: Counter[str]
    unused_keys: Counter[str]
    ignored_keys: Counter[str]


@dataclass(slots=True, kw_only=True)
class _FileReading:
    """What the chunks of a file gave so far; `unreadable` says why it has no more."""

    chunks: ChunkedFile
    records: int = 0
    unparsed: list[DataProblem] = field(default_factory=list)
    bad: list[DataProblem] = field(default_factory=list)
    unreadable: Sequence[DataProblem] = ()

    def add(self, reading: ChunkReading) -> None:
        self.records += reading.records
        self.unparsed.extend(reading.unparsed)
        self.bad.extend(reading.problems)

    @property
    def problems(self) -> list[DataProblem]:
        return [*self.unparsed, *self.bad]


ReadChunks = Callable[[Iterable[Chunk]], Iterator[ChunkReading]]


def read_conversations(
    source: str | Sequence[str],
    *,
    format: str = "auto",
    on_bad_row: OnBadRow = "fail",
    unknown_keys: OnUnknownKeys = "fail",
    group_by: str | None = None,
    tag: str | None = None,
    every: int = 1,
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
        every: n reads only every n-th record, as a sample, which has no digest.

    Raises:
        ConversationError: a file that cannot be read at all, or (fail) any bad record, or nothing left.
    """
    rules = ReadRules(on_bad_row=on_bad_row, unknown_keys=unknown_keys, group_by=group_by, tag=tag)
    conversations: list[Conversation] = []
    read = read_source(
        source,
        rules,
        format=format,
        read_chunks=lambda chunks: (read_chunk(chunk, rules) for chunk in chunks),
        keep=conversations.extend,
        every=every,
    )
    return replace(read, conversations=tuple(conversations))


def read_source(
    source: str | Sequence[str],
    rules: ReadRules,
    *,
    format: str,
    read_chunks: ReadChunks,
    keep: Callable[[Sequence[Any]], None],
    every: int = 1,
) -> ReadResult:
    """As read_conversations, but the result has no conversations: they are given to `keep`, a chunk at a time, in order.

    Args:
        read_chunks: makes of each chunk, of all files one after the other, what read_chunk makes of it, in order.
    """
    mended: list[DataProblem] = []
    mended_kinds, unused_keys, ignored_keys = Counter[str](), Counter[str](), Counter[str]()
    files = [_FileReading(chunks=ChunkedFile(file, format, every=every)) for file in files_of(source)]
    file_of_next: deque[_FileReading] = deque()
    kept = 0
    for reading in read_chunks(_chunks_of(files, file_of_next)):
        file_of_next.popleft().add(reading)
        keep(reading.conversations)
        kept += len(reading.conversations)
        mended.extend(reading.mended)
        mended_kinds += reading.mended_kinds
        unused_keys += reading.unused_keys
        ignored_keys += reading.ignored_keys
    unreadable = [problem for file in files for problem in file.unreadable]
    problems = [problem for file in files for problem in file.problems]
    counts = {file.chunks.file: file.records for file in files if not file.unreadable}
    if unreadable or (problems and rules.on_bad_row == "fail"):
        raise ConversationError([*unreadable, *problems], counts)
    if not kept:
        empty = [DataProblem(file=file, location="", text="holds no conversations") for file in counts]
        raise ConversationError(problems or empty, counts if problems else {})
    return ReadResult(
        conversations=(),
        dropped=tuple(problems),
        mended=tuple(mended),
        mended_kinds=dict(sorted(mended_kinds.items())),
        unused_keys=dict(sorted(unused_keys.items())),
        ignored_keys=dict(sorted(ignored_keys.items())),
        digest=digest_of_files([file.chunks.digest for file in files]),
    )


def _chunks_of(files: Sequence[_FileReading], file_of_next: deque[_FileReading]) -> Iterator[Chunk]:
    """Yields the chunks of all files, and says of which file each is. One file that cannot be read ends no other."""
    for file in files:
        try:
            for chunk in file.chunks:
                file_of_next.append(file)
                yield chunk
        except ConversationError as error:
            file.unreadable = error.problems


def read_chunk(chunk: Chunk, rules: ReadRules) -> ChunkReading:
    records, unparsed = chunk.parse()
    problems: list[DataProblem] = []
    read: list[_Reading] = []
    for record in records:
        reading = _with_tag(_read(record, chunk.record_format, rules), record.value, rules.tag)
        problems.extend(map(record.problem, of_one_record(reading.problems)))
        if reading.conversation is not None:
            read.append(reading)
    return ChunkReading(
        records=len(records) + len({problem.location for problem in unparsed}),
        conversations=[reading.conversation for reading in read],
        unparsed=unparsed,
        problems=problems,
        mended=[reading.mended for reading in read if reading.mended is not None],
        mended_kinds=Counter(chain.from_iterable(reading.mended_kinds for reading in read)),
        unused_keys=Counter(chain.from_iterable(reading.unused_keys for reading in read)),
        ignored_keys=Counter(chain.from_iterable(reading.ignored_keys for reading in read)),
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


def _read(record: SourceRecord, record_format: str, rules: ReadRules) -> _Reading:
    """Reads one record. Whatever that raises is a problem of this record, and the others are read on."""
    try:
        return _checked(record, record_format, rules)
    except RecordFormatError as error:
        return _Reading(problems=[str(error)])
    except Exception as error:  # noqa: BLE001 - a record holds anything, also what no rule has foreseen
        return _Reading(problems=[f"cannot be read ({type(error).__name__}: {error})"])


def _checked(record: SourceRecord, record_format: str, rules: ReadRules) -> _Reading:
    raw = add_group(RECORD_FORMATS[record_format](record.value), record.value, rules.group_by)
    source = f"{record.file}, {record.location}"
    validation = _validated(raw, source, rules.unknown_keys)
    if validation.conversation is not None:
        return _reading(validation, raw)
    messages, mends = mend(raw.messages)
    mended = _validated(replace(raw, messages=messages), source, rules.unknown_keys) if mends else validation
    if mended.conversation is None:
        return _Reading(problems=validation.problems)
    done = "; ".join(each.text for each in mends)
    if rules.on_bad_row == "fail":
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
