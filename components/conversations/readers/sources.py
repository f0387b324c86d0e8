"""Where records come from: JSONL, JSON and Parquet files, lists and globs of them, and Hugging Face datasets.

A row of a table has the keys of all rows, null where it has none itself, at every depth; so nulls in mappings of table
rows say nothing and are taken out. A null that was meant cannot be told from them: what needs one (a schema's default)
is kept as JSON text, in which all stays as written, as in JSON files. Nulls in lists (an enum's) stay everywhere.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet

from components.conversations.readers.errors import ConversationError, Problem
from components.conversations.readers.strict_json import Fault, read_json, reason_of
from components.storage.open import folder_at
from components.storage.uri import is_remote

HUB_PREFIX = "hf:"
A_DATASET = "a dataset of the hub is hf:NAME[:SPLIT][@REVISION]"
KINDS = ".jsonl, .json or .parquet"
HUB = re.compile(r"hf:(?P<name>[^:@]+)(:(?P<split>[^@]+))?(@(?P<revision>[^:@]+))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One raw conversation, and where it stands in its file: `line 41` of a JSONL, `record 3` of anything else."""

    file: str
    place: str
    value: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file holds: its records, and what is wrong with those that are none. `digest` is of the bytes they come from."""

    records: list[Record]
    problems: list[Problem]
    digest: str


def files_of(source: str | Sequence[str]) -> list[str]:
    """The files (or hf: ids) that a source names, in order. Raises ConversationError for those that do not exist."""
    found: list[str] = []
    problems = []
    for name in [source] if isinstance(source, str) else source:
        matches = _matches(name)
        if not matches:
            text = f"no such file; a path is relative to where you run this, and {A_DATASET}"
            problems.append(Problem(file=name, place="", text=text))
        found.extend(match for match in matches if match not in found)
    if problems:
        raise ConversationError(problems, {})
    return found


def _matches(name: str) -> list[str]:
    """What a name stands for: itself, or the files of a pattern. In a bucket only the last part may be one."""
    if name.startswith(HUB_PREFIX):
        return [name]
    if is_remote(name):
        try:
            folder, pattern = folder_at(name).parent, folder_at(name).name
            return [str(folder / file) for file in folder.list_names() if fnmatch.fnmatchcase(file, pattern)]
        except OSError as error:
            raise _refusal(name, f"cannot be read: {error}") from None
    if Path(name).is_file():
        return [name]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [match for match in found if Path(match).is_file()]


def content_digest(source: str | Sequence[str]) -> str:
    """Of the bytes of all files of a source, and the rows of its hub datasets, whatever they are called."""
    return digest_of_files([_digest_of(file) for file in files_of(source)])


def digest_of_files(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def read_records(file: str) -> Content:
    """All of one file, which is read once. Raises ConversationError if nothing of it can be read."""
    if file.startswith(HUB_PREFIX):
        rows = _hub_rows(file)
        return Content(records=_numbered(file, rows), problems=[], digest=_digest_of_rows(rows))
    suffix = Path(urlsplit(file).path if is_remote(file) else file).suffix.lower()
    if suffix not in (".jsonl", ".json", ".parquet"):
        raise _refusal(file, f"not a {KINDS} file")
    content = _bytes_of(file)
    digest = hashlib.sha256(content).hexdigest()
    if suffix == ".parquet":
        return Content(records=_numbered(file, _parquet_rows(file, content)), problems=[], digest=digest)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _refusal(file, f"not UTF-8: {error}") from None
    records, problems = _json_lines(file, text) if suffix == ".jsonl" else _json_records(file, text)
    return Content(records=records, problems=problems, digest=digest)


def _digest_of(file: str) -> str:
    if file.startswith(HUB_PREFIX):
        return _digest_of_rows(_hub_rows(file))
    return hashlib.sha256(_bytes_of(file)).hexdigest()


def _digest_of_rows(rows: list[Any]) -> str:
    """A name, and even a revision's name, may stand for other rows tomorrow; rows are the same on every machine."""
    hashed = hashlib.sha256()
    for row in rows:
        hashed.update(json.dumps(row, sort_keys=True, default=repr).encode() + b"\n")
    return hashed.hexdigest()


def _refusal(file: str, text: str) -> ConversationError:
    return ConversationError([Problem(file=file, place="", text=text)], {})


def _bytes_of(file: str) -> bytes:
    try:
        if is_remote(file):
            return folder_at(file).parent.read_bytes(folder_at(file).name)
        return Path(file).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise _refusal(file, f"cannot be read: {reason}") from None


def _json_lines(file: str, text: str) -> tuple[list[Record], list[Problem]]:
    records, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            value, faults = read_json(line)
        except ValueError as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            problems.append(Problem(file=file, place=place, text=f"not JSON: {reason_of(error)}{column}"))
            continue
        problems += [Problem(file=file, place=place, text=str(fault)) for fault in faults]
        if not faults:
            records.append(Record(file=file, place=place, value=value))
    return records, problems


def _json_records(file: str, text: str) -> tuple[list[Record], list[Problem]]:
    try:
        value, faults = read_json(text)
    except ValueError as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        text = f"not JSON: {reason_of(error)}{where}; one record per line is a .jsonl file"
        raise _refusal(file, text) from None
    is_list = isinstance(value, list)
    # Not a list, or one bare conversation: the file is one record.
    if isinstance(value, dict) or (
        is_list and value and all(isinstance(message, dict) and "role" in message for message in value)
    ):
        value, is_list = [value], False
    if not isinstance(value, list):
        raise _refusal(file, "the file must hold a list of conversations")
    problems = [_problem_of(file, fault, is_list=is_list) for fault in faults]
    broken = {problem.place for problem in problems}
    return [record for record in _numbered(file, value) if record.place not in broken], problems


def _problem_of(file: str, fault: Fault, *, is_list: bool) -> Problem:
    """Where the file is a list, the path begins with the record's position."""
    if is_list and fault.path:
        inside = Fault(path=fault.path[1:], text=fault.text)
        return Problem(file=file, place=f"record {int(fault.path[0]) + 1}", text=str(inside))
    return Problem(file=file, place="record 1", text=str(fault))


def _parquet_rows(file: str, content: bytes) -> list[Any]:
    try:
        table = pyarrow.parquet.read_table(pa.BufferReader(content))
        rows: list[Any] = table.to_pylist(maps_as_pydicts="strict")
    except (pa.ArrowInvalid, UnicodeDecodeError, KeyError) as error:
        raise _refusal(file, f"not Parquet: {error}") from None
    return [_without_nulls(row) for row in rows]


def _hub_rows(file: str) -> list[Any]:
    import datasets

    named = HUB.fullmatch(file)
    if named is None:
        raise _refusal(file, A_DATASET)
    try:
        rows = datasets.load_dataset(named["name"], split=named["split"] or "train", revision=named["revision"])
        return [_without_nulls(row) for row in rows]
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise _refusal(file, f"no dataset {file.removeprefix(HUB_PREFIX)} to be had: {reason}") from None


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _numbered(file: str, values: Sequence[Any]) -> list[Record]:
    return [Record(file=file, place=f"record {number}", value=value) for number, value in enumerate(values, start=1)]
