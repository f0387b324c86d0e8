"""Storage that is mounted: a disk of this machine, or a share that all nodes see at the same path."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from components.storage.append_log import LineFile
from components.storage.base import Folder
from components.storage.file_lock import Lock, file_lock
from components.storage.fsync import path_to_disk, to_disk, tree_to_disk


@dataclass(frozen=True, slots=True)
class LocalFolder(Folder):
    """Its URI is its absolute path."""

    @property
    def path(self) -> Path:
        return Path(self.uri)

    @property
    def name(self) -> str:
        return self.path.name

    def __truediv__(self, name: str) -> LocalFolder:
        return LocalFolder(str(self.path / name))

    @property
    def parent(self) -> LocalFolder:
        return LocalFolder(str(self.path.parent))

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.iterdir()) if self.path.is_dir() else []

    def has(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read_text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def read_bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def write_text(self, name: str, text: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        scratch = self.path / f".{name}"
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            to_disk(file)
        scratch.replace(self.path / name)

    def log(self, name: str) -> LineFile:
        return LineFile(self.path / name)

    def lock(self, name: str) -> Lock:
        self.path.mkdir(parents=True, exist_ok=True)
        return file_lock(self.path / name)

    def probe(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            return

    def fill(self, write: Callable[[Path], None]) -> None:
        scratch = self.path.with_name(f".{self.name}.{uuid.uuid4().hex}")  # another node may have an equal process id
        scratch.mkdir(parents=True)
        try:
            write(scratch)
            tree_to_disk(scratch)
            self._move_here(scratch)
            path_to_disk(self.path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def is_whole(self) -> bool:
        return self.path.is_dir()

    def local(self) -> Path:
        return self.path

    def copied(self, patterns: Sequence[str]) -> Path:
        return self.path

    def forget_local(self) -> None:
        return

    def discard(self, pattern: str) -> None:
        for file in self.path.glob(pattern):
            file.unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)

    def _move_here(self, scratch: Path) -> None:
        try:
            scratch.rename(self.path)
        except OSError:
            if not self.is_whole():
                raise
