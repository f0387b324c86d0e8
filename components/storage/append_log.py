"""Append-only lines: in one file on a disk, or, where nothing can be appended to, an object each."""

from __future__ import annotations

import os
import re
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol

from components.storage.fsync import path_to_disk, to_disk

if TYPE_CHECKING:
    from components.storage.base import Folder

LINE = re.compile(r"(\d{8})-[0-9a-f]+\.json")
READERS = 16  # at a time: each object costs a round trip


class LineLog(Protocol):
    """Where it stands is `place`, for people."""

    place: str

    def append(self, line: str) -> None:
        """Returns once the line would survive this process and the machine."""
        ...

    def read(self) -> list[bytes]:
        """Every whole line, in order."""
        ...

    def close(self) -> None: ...


class LineFile:
    """A line that a kill has torn is the last one, and is left out."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, str(path)
        self._file: IO[str] | None = None

    def append(self, line: str) -> None:
        if self._file is None:
            self._file = self._open()
        self._file.write(line + "\n")
        to_disk(self._file)

    def read(self) -> list[bytes]:
        if not self.path.exists():
            return []
        *lines, _torn = self.path.read_bytes().split(b"\n")
        return lines

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _open(self) -> IO[str]:
        """A torn last line is cut off, or the next one would be glued to it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            content = self.path.read_bytes()
            os.truncate(self.path, content.rfind(b"\n") + 1)
        file = self.path.open("a", encoding="utf-8")
        path_to_disk(self.path.parent)
        return file


class LineObjects:
    """A folder with an object for each line, numbered in their order. What has been read is not fetched again.

    A writer's objects have its own mark in their names: two writers, which should not be, overwrite nothing.
    """

    def __init__(self, folder: Folder) -> None:
        self.folder, self.place = folder, folder.uri
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

    def read(self) -> list[bytes]:
        names = self._names()
        new = [name for name in names if name not in self._lines]
        with ThreadPoolExecutor(READERS) as readers:
            texts = readers.map(self.folder.read_text, new)
            self._lines |= {name: text.rstrip("\n").encode() for name, text in zip(new, texts, strict=True)}
        return [self._lines[name] for name in names]

    def close(self) -> None:
        return

    def _names(self) -> list[str]:
        return [name for name in self.folder.names() if LINE.fullmatch(name)]
