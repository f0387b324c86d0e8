"""Where records come from: JSONL, JSON and Parquet files, lists and globs of them, and Hugging Face datasets."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet

from components.conversations.problems import ConversationError, Problem
from components.storage.address import is_remote
from components.storage.folder import folder_at

HUB_PREFIX = "hf:"
KINDS = ".jsonl, .json or .parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One raw conversation, and where it stands in its file: `line 41` of a JSONL, `record 3` of anything else."""

    file: str
    place: str
    value: Any


def files_of(source: str | Sequence[str]) -> list[str]:
    """The files (or hf: ids) that a source names, in order. Raises ConversationError for those that do not exist."""
    found: list[str] = []
    problems = []
    for name in [source] if isinstance(source, str) else source:
        matches = _matches(name)
        if not matches:
            text = "no such file; a path is relative to where you run this, and a dataset of the hub is hf:NAME[:SPLIT]"
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
            return [str(folder / file) for file in folder.names() if fnmatch.fnmatchcase(file, pattern)]
        except OSError as error:
            raise ConversationError([Problem(file=name, place="", text=f"cannot be read: {error}")], {}) from None
    if Path(name).is_file():
        return [name]
    found = sorted(glob.glob(name, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return [match for match in found if Path(match).is_file()]


def content_digest(source: str | Sequence[str]) -> str:
    """SHA-256 over the bytes of all files of a source, and the names of hub datasets."""
    hashed = hashlib.sha256()
    for file in files_of(source):
        if file.startswith(HUB_PREFIX):
            hashed.update(file.encode())
        else:
            hashed.update(_bytes_of(file))
        hashed.update(b"\0")
    return hashed.hexdigest()


def read_records(file: str) -> tuple[list[Record], list[Problem]]:
    """All records of one file, and the lines that are none. Raises ConversationError if nothing of it can be read."""
    if file.startswith(HUB_PREFIX):
        return _numbered(file, _hub_rows(file)), []
    suffix = Path(urlsplit(file).path if is_remote(file) else file).suffix.lower()
    if suffix == ".parquet":
        return _numbered(file, _parquet_rows(file)), []
    if suffix not in (".jsonl", ".json"):
        raise ConversationError([Problem(file=file, place="", text=f"not a {KINDS} file")], {})
    try:
        text = _bytes_of(file).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConversationError([Problem(file=file, place="", text=f"not UTF-8: {error}")], {}) from None
    return _json_lines(file, text) if suffix == ".jsonl" else (_json_records(file, text), [])


def _bytes_of(file: str) -> bytes:
    try:
        if is_remote(file):
            return folder_at(file).parent.read_bytes(folder_at(file).name)
        return Path(file).read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConversationError([Problem(file=file, place="", text=f"cannot be read: {reason}")], {}) from None


def _json_lines(file: str, text: str) -> tuple[list[Record], list[Problem]]:
    records, problems = [], []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            records.append(Record(file=file, place=f"line {number}", value=json.loads(line)))
        except json.JSONDecodeError as error:
            problems.append(
                Problem(file=file, place=f"line {number}", text=f"not JSON: {error.msg} at column {error.colno}")
            )
    return records, problems


def _json_records(file: str, text: str) -> list[Record]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        text = (
            f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}; one record per line is a .jsonl file"
        )
        raise ConversationError([Problem(file=file, place="", text=text)], {}) from None
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise ConversationError([Problem(file=file, place="", text="the file must hold a list of conversations")], {})
    if value and all(isinstance(message, dict) and "role" in message for message in value):
        value = [value]  # one bare conversation
    return _numbered(file, value)


def _parquet_rows(file: str) -> list[Any]:
    source = pa.BufferReader(_bytes_of(file)) if is_remote(file) else file
    try:
        rows: list[Any] = pyarrow.parquet.read_table(source).to_pylist()
    except pa.ArrowInvalid as error:
        raise ConversationError([Problem(file=file, place="", text=f"not Parquet: {error}")], {}) from None
    return [{key: value for key, value in row.items() if value is not None} for row in rows]


def _hub_rows(file: str) -> list[Any]:
    import datasets

    name, _, split = file.removeprefix(HUB_PREFIX).partition(":")
    try:
        return list(datasets.load_dataset(name, split=split or "train"))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise ConversationError(
            [Problem(file=file, place="", text=f"no dataset {name} to be had: {reason}")], {}
        ) from None


def _numbered(file: str, values: Sequence[Any]) -> list[Record]:
    return [Record(file=file, place=f"record {number}", value=value) for number, value in enumerate(values, start=1)]
