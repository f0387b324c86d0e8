"""How many records sources have, found out without parsing them where that can be."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.sources import HUB_PREFIX, files_of, hub_table, read_records
from components.storage.uri import is_remote

BLOCK = 1 << 20  # bytes


def count_records(sources: Iterable[str | Sequence[str] | None], *, enough: int = sys.maxsize) -> int:
    """Counts lines of local JSONL files, and by the footers of local Parquet files; what else there is has to be read.

    A file that cannot be read counts for nothing: who prepares it says why.

    Args:
        enough: where so many are found, no more are counted.
    """
    found = 0
    for source in sources:
        for file in () if source is None else _files_of(source):
            if found < enough:
                found += _records_of(file, enough - found)
    return found


def _files_of(source: str | Sequence[str]) -> list[str]:
    try:
        return files_of(source)
    except ConversationError:
        return []


def _records_of(file: str, enough: int) -> int:
    suffix = "" if is_remote(file) else Path(file).suffix.lower()
    try:
        if suffix == ".jsonl":
            return _lines_of(file, enough)
        if suffix == ".parquet":
            return int(pyarrow.parquet.ParquetFile(file).metadata.num_rows)
        return len(hub_table(file)) if file.startswith(HUB_PREFIX) else len(read_records(file).records)
    except (ConversationError, OSError, pa.ArrowException):
        return 0


def _lines_of(file: str, enough: int) -> int:
    lines = 0
    with Path(file).open("rb") as opened:
        while lines < enough and (block := opened.read(BLOCK)):
            lines += block.count(b"\n")
    return lines
