"""Append-only logs: one file on a mounted disk, or one object per line where nothing can be appended to."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

from components.storage.folder import AppendLog, Folder
from components.storage.fsync import fsync_path, write_all
from components.storage.regular_files import open_own
from components.storage.room import wait_for_room

LINE = re.compile(r"(\d{8})-[0-9a-f]+\.json")
READERS = 16  # concurrent reads: each object costs a round trip


class FileAppendLog(AppendLog):
    """A line that was cut by a kill can only be the last one, and is skipped.

    On a full disk `append` waits for room. A line of which only a part was written is taken back first.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.location = path, str(path)
        self._file: IO[bytes] | None = None
        self._end = 0  # of the last whole line
        self._read = 0, 0  # the lines that have been read, and where the last of them ends

    def append(self, line: str) -> None:
        content = f"{line}\n".encode()
        wait_for_room(lambda: self._append(content), self.path)

    def read(self, after: int = 0) -> Iterator[bytes]:
        if not self.path.exists():
            return
        number, place = self._read if self._read[0] <= after else (0, 0)
        with self.path.open("rb") as file:
            file.seek(place)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                number, place = number + 1, place + len(line)
                if number > self._read[0]:
                    self._read = number, place
                if number > after:
                    yield line[:-1]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, content: bytes) -> None:
        if self._file is None:
            self._file = self._open()
        try:
            write_all(self._file, content)
            os.fsync(self._file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file.fileno(), self._end)
            raise
        self._end += len(content)

    def _open(self) -> IO[bytes]:
        """Cuts off a torn last line; otherwise the next line would be joined to it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer: what could not be written must not be written again when the file is closed.
        file = os.fdopen(open_own(self.path, os.O_RDWR | os.O_APPEND), "a+b", buffering=0)
        content = self.path.read_bytes()
        self._end = content.rfind(b"\n") + 1
        if self._end < len(content):
            file.truncate(self._end)
        fsync_path(self.path.parent)
        return file


class ObjectAppendLog(AppendLog):
    """A folder with one object per line, numbered in order. A line that has been read is not downloaded again.

    Each writer marks the names of its objects. There should be one writer at a time, but a second one overwrites nothing.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder, self.location = folder, folder.uri
        self._lines: dict[str, bytes] = {}
        self._mark = uuid.uuid4().hex[:8]
        self._number: int | None = None

    def append(self, line: str) -> None:
        if self._number is None:
            self._number = max((int(name[:8]) for name in self._names()), default=0)
        self._number += 1
        name = f"{self._number:08d}-{self._mark}.json"
        self.folder.write_text(name, line + "\n")
        self._lines[name] = line.encode()

    def read(self, after: int = 0) -> Iterator[bytes]:
        names = self._names()
        new = [name for name in names if name not in self._lines]
        with ThreadPoolExecutor(READERS) as readers:
            texts = readers.map(self.folder.read_text, new)
            self._lines |= {name: text.rstrip("\n").encode() for name, text in zip(new, texts, strict=True)}
        yield from (self._lines[name] for name in names[after:])

    def close(self) -> None:
        return

    def _names(self) -> list[str]:
        return [name for name in self.folder.list_names() if LINE.fullmatch(name)]
