"""Append-only lines: one file on a disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Protocol


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
        folder_to_disk(self.path.parent)  # a new file is in its folder for good only when the folder is on disk too
        return file


def to_disk(file: IO[str]) -> None:
    file.flush()
    os.fsync(file.fileno())


def folder_to_disk(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY)
    os.fsync(opened)
    os.close(opened)
