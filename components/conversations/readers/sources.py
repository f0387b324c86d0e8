"""Reads records from JSONL, JSON and Parquet files, lists and globs of them, and Hugging Face datasets.

A row of a table has the keys of all rows, at every depth; missing values are null. So nulls in mappings of table rows have
no meaning and are removed. An intended null cannot be distinguished from them: an object that needs one (a schema's
default) must be kept as JSON text, which is not changed, as in JSON files. Nulls in lists (of an enum) always stay.
"""

from __future__ import annotations

import codecs
import contextlib
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet

from components.conversations.readers.data_problems import ConversationError, DataProblem, of_one_record
from components.conversations.readers.file_patterns import TooManyFilesError, files_matching
from components.conversations.readers.strict_json import Fault, NestingError, json_error_reason, read_json
from components.storage.open_folder import folder_at
from components.storage.uri import is_remote

HUB_PREFIX = "hf:"
A_DATASET = "a dataset of the hub is hf:NAME[:SPLIT][@REVISION]"
SUFFIXES = (".jsonl", ".json", ".parquet")
MAX_BYTES = 20_000_000  # of one record's line
MARKS = re.compile(
    r'"(?:[^"\\]|\\.)*"|[\[\]{},]'
)  # of JSON: texts, so that brackets in them do not count, and brackets
HUB = re.compile(r"hf:(?P<name>[^:@]+)(:(?P<split>[^@]+))?(@(?P<revision>[^:@]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """One record and its location in a file: `line 41` of a JSONL file, `record 3` of any other."""

    file: str
    location: str
    value: Any

    def problem(self, text: str) -> DataProblem:
        return DataProblem(file=self.file, location=self.location, text=text)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileContent:
    """A file's records, and the problems of those that cannot be read. `digest` is of the file's bytes."""

    records: list[SourceRecord]
    problems: list[DataProblem]
    digest: str


def files_of(source: str | Sequence[str]) -> list[str]:
    """Returns the files (or hf: ids) that a source names, in order. Raises ConversationError for those that do not exist."""
    found: list[str] = []
    problems = []
    for name in [source] if isinstance(source, str) else source:
        matches = _matches(name)
        if not matches:
            text = f"no such file; a path is relative to where you run this, and {A_DATASET}"
            problems.append(DataProblem(file=name, location="", text=text))
        found.extend(match for match in matches if match not in found)
    if problems:
        raise ConversationError(problems, {})
    return found


def _matches(name: str) -> list[str]:
    """Returns the file with this name, or the files that match it. In a bucket only the last part may be a pattern."""
    if name.startswith(HUB_PREFIX):
        return [name]
    if is_remote(name):
        try:
            folder, pattern = folder_at(name).parent, folder_at(name).name
            return [str(folder / file) for file in folder.list_names() if fnmatch.fnmatchcase(file, pattern)]
        except OSError as error:
            raise _refusal(name, f"cannot be read: {error}") from None
    try:
        return [name] if Path(name).is_file() else files_matching(name)
    except (TooManyFilesError, OSError) as error:
        raise _refusal(name, str(error)) from None
    except ValueError as error:  # a NUL, or half a character
        raise _refusal(name, f"no name of a file: {error}") from None


def content_digest(source: str | Sequence[str]) -> str:
    """Returns the digest of the bytes of a source's files and of the rows of its hub datasets, without their names."""
    return digest_of_files([_digest_of(file) for file in files_of(source)])


def digest_of_files(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_records(file: str, *, every: int = 1) -> FileContent:
    """Reads all records of one file, or every n-th of a table's. Raises ConversationError if none of it can be read."""
    if file.startswith(HUB_PREFIX):
        rows = _hub_rows(file, every)
        return FileContent(records=_number_records(file, rows, every), problems=[], digest=_digest_of_rows(rows))
    suffix = Path(urlsplit(file).path if is_remote(file) else file).suffix.lower()
    if suffix not in SUFFIXES:
        raise _refusal(file, f"not a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file")
    content = _bytes_of(file)
    digest = hashlib.sha256(content).hexdigest()
    if suffix == ".parquet":
        rows = _parquet_rows(file, content, every)
        return FileContent(records=_number_records(file, rows, every), problems=[], digest=digest)
    content = content.removeprefix(codecs.BOM_UTF8)
    records, problems = parse_lines(file, content.split(b"\n")) if suffix == ".jsonl" else _json_records(file, content)
    return FileContent(records=records[::every], problems=problems, digest=digest)


def _digest_of(file: str) -> str:
    if file.startswith(HUB_PREFIX):
        return _digest_of_rows(_hub_rows(file))
    if is_remote(file):
        return hashlib.sha256(_bytes_of(file)).hexdigest()
    with refuses_unreadable(file), Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _digest_of_rows(rows: list[Any]) -> str:
    """Returns a digest of rows: the rows of a name, even of a revision's name, may change, but rows are equal everywhere."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return hashed.hexdigest()


def _refusal(file: str, text: str) -> ConversationError:
    return ConversationError([DataProblem(file=file, location="", text=text)], {})


def _bytes_of(file: str) -> bytes:
    with refuses_unreadable(file):
        if is_remote(file):
            return folder_at(file).parent.read_bytes(folder_at(file).name)
        return Path(file).read_bytes()


@contextlib.contextmanager
def refuses_unreadable(file: str) -> Iterator[None]:
    """Raises ConversationError instead of OSError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise _refusal(file, f"cannot be read: {reason}") from None


def parse_lines(file: str, lines: Sequence[bytes], first: int = 1) -> tuple[list[SourceRecord], list[DataProblem]]:
    """Returns the records in lines of a JSONL file, of which `first` is the number of the first, and what is no record."""
    records, problems = [], []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        location = f"line {number}"
        try:
            value, faults = read_json(_text_of(line.removesuffix(b"\n")))
        except ValueError as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            problems.append(DataProblem(file=file, location=location, text=f"{_reason(error)}{column}"))
            continue
        problems += [
            DataProblem(file=file, location=location, text=text) for text in of_one_record([*map(str, faults)])
        ]
        if not faults:
            records.append(SourceRecord(file=file, location=location, value=value))
    return records, problems


def _text_of(content: bytes) -> str:
    """Returns the text of a record. Raises ValueError if it is none, or too long."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"{len(content):,} bytes; at most {MAX_BYTES:,} are read, and a model sees far fewer at once")
    return content.decode("utf-8")


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8: {error}"
    return f"not JSON: {json_error_reason(error)}"


def _json_records(file: str, content: bytes) -> tuple[list[SourceRecord], list[DataProblem]]:
    try:
        value, faults = read_json(content.decode("utf-8"))
    except NestingError:
        return _records_apart(file, content.decode("utf-8"))
    except ValueError as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise _refusal(file, f"{_reason(error)}{where}; one record per line is a .jsonl file") from None
    is_list = isinstance(value, list)
    # An object, or a list of messages: the file is one record.
    if isinstance(value, dict) or (
        is_list and value and all(isinstance(message, dict) and "role" in message for message in value)
    ):
        value, is_list = [value], False
    if not isinstance(value, list):
        raise _refusal(file, "the file must hold a list of conversations")
    problems = [_problem_of(file, fault, is_list=is_list) for fault in faults]
    broken = {problem.location for problem in problems}
    return [record for record in _number_records(file, value) if record.location not in broken], problems


def _records_apart(file: str, text: str) -> tuple[list[SourceRecord], list[DataProblem]]:
    """Reads the records of a list one by one, because one of them is nested so deeply that the list cannot be read."""
    records, problems = [], []
    for number, part in enumerate(_items_of_list(text), start=1):
        location = f"record {number}"
        try:
            value, faults = read_json(part)
        except ValueError as error:
            faults, value = [Fault(path=(), text=_reason(error))], None
        problems += [DataProblem(file=file, location=location, text=str(fault)) for fault in faults]
        if not faults:
            records.append(SourceRecord(file=file, location=location, value=value))
    return records, problems


def _items_of_list(text: str) -> Iterator[str]:
    """Yields the text of each item of a JSON list, found by its brackets, however deep they are."""
    depth, start = 0, 0
    for mark in MARKS.finditer(text):
        if mark[0] in "[{":
            depth += 1
            start = mark.end() if depth == 1 else start
        elif mark[0] in "]}":
            depth -= 1
        if (depth == 1 and mark[0] == ",") or (depth == 0 and mark[0] == "]"):
            yield text[start : mark.start()]
            start = mark.end()


def _problem_of(file: str, fault: Fault, *, is_list: bool) -> DataProblem:
    """Returns a fault as the problem of a record. If the file is a list, the path begins with the record's position."""
    if is_list and fault.path:
        inside = Fault(path=fault.path[1:], text=fault.text)
        return DataProblem(file=file, location=f"record {int(fault.path[0]) + 1}", text=str(inside))
    return DataProblem(file=file, location="record 1", text=str(fault))


def _parquet_rows(file: str, content: bytes, every: int) -> list[Any]:
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content), page_checksum_verification=True)
        table = table if every == 1 else table.take(pa.array(range(0, table.num_rows, every)))
        rows: list[Any] = table.to_pylist(maps_as_pydicts="strict")
        return [_drop_nulls(row) for row in rows]
    except Exception as error:  # noqa: BLE001 - of damaged bytes Arrow says this and that, and Python's types, too
        raise _refusal(file, f"not Parquet, or damaged: {type(error).__name__}: {error}") from None


def _hub_rows(file: str, every: int = 1) -> list[Any]:
    rows = hub_table(file)
    try:
        return [_drop_nulls(row) for row in (rows if every == 1 else rows.select(range(0, len(rows), every)))]
    except (OSError, ValueError) as error:
        raise _refusal(file, f"its rows cannot be read: {error}") from None


def hub_table(file: str) -> Any:
    """Returns the rows of a dataset of the hub, none of which is in memory. Raises ConversationError."""
    try:
        import datasets  # no other source needs this package
    except ImportError as error:
        raise _refusal(file, f"is loaded by the package datasets, which cannot be imported here ({error})") from None
    named = HUB.fullmatch(file)
    if named is None:
        raise _refusal(file, A_DATASET)
    try:
        return datasets.load_dataset(named["name"], split=named["split"] or "train", revision=named["revision"])
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise _refusal(file, f"no dataset {file.removeprefix(HUB_PREFIX)} to be had: {reason}") from None


def _drop_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _drop_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_drop_nulls(item) for item in value]
    return value


def _number_records(file: str, values: Sequence[Any], every: int = 1) -> list[SourceRecord]:
    return [
        SourceRecord(file=file, location=f"record {1 + index * every}", value=value)
        for index, value in enumerate(values)
    ]
