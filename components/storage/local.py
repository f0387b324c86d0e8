"""Storage that is mounted: a disk of this machine, or a share that all nodes see at the same path."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from components.storage.append_log import FileAppendLog
from components.storage.background_upload import BackgroundUpload
from components.storage.file_lock import FileLock
from components.storage.folder import Folder, Lock, PendingWrite
from components.storage.fsync import fsync_folders, fsync_path, fsync_tree
from components.storage.regular_files import read_small
from components.storage.room import in_words, wait_for_room
from components.storage.unfinished import LONG_AGO, beside, is_hidden, remove, remove_rests, replacing, set_aside


@dataclass(frozen=True, slots=True)
class LocalFolder(Folder):
    """Its URI is its absolute path."""

    complete_on_commit: ClassVar[bool] = True
    access_advice: ClassVar[str] = "name another folder, e.g. --set storage.path=runs"

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

    def list_names(self) -> list[str]:
        names = (path.name for path in self.path.iterdir()) if self.path.is_dir() else ()
        return sorted(name for name in names if not is_hidden(name))

    def has_file(self, name: str) -> bool:
        return (self.path / name).is_file()

    def read_text(self, name: str) -> str:
        return (self.path / name).read_text(encoding="utf-8")

    def read_bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def read_small(self, name: str, max_bytes: int) -> bytes:
        return read_small(self.path / name, max_bytes)

    def write_bytes(self, name: str, content: bytes) -> None:
        def write() -> None:
            self.path.mkdir(parents=True, exist_ok=True)
            with replacing(self.path / name) as file:
                file.write(content)

        wait_for_room(write, self.path / name)

    def delete_file(self, name: str, *, retry: bool = True) -> None:
        (self.path / name).unlink(missing_ok=True)

    def append_log(self, name: str) -> FileAppendLog:
        return FileAppendLog(self.path / name)

    def lock(self, name: str) -> Lock:
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / name)

    def check_access(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=self.path):
            return

    def free_bytes(self) -> int | None:
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        return shutil.disk_usage(there).free

    def publish(self, write: Callable[[Path], None]) -> None:
        remove_rests(self.path.parent, older_than=LONG_AGO)  # other searches may be filling theirs
        scratch = beside(self.path)
        try:
            with in_words(self.path):
                scratch.mkdir(parents=True)
                write(scratch)
                fsync_tree(scratch)
                self._move_here(scratch)
                fsync_path(self.path.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def begin(self, *, part: int, of: int, barrier: Callable[[], None], uploads: BackgroundUpload) -> PendingWrite:
        return SharedWrite(self.path, part=part, barrier=barrier)

    def is_complete(self) -> bool:
        return self.path.is_dir()

    def download(self) -> Path:
        return self.path

    def download_matching(self, patterns: Sequence[str]) -> Path:
        return self.path

    def evict(self) -> None:
        return

    def delete_matching(self, pattern: str) -> None:
        for file in self.path.glob(pattern):
            file.unlink(missing_ok=True)

    def delete(self) -> None:
        remove(self.path)

    def delete_unfinished(self) -> None:
        remove_rests(self.path)

    def _move_here(self, scratch: Path) -> None:
        try:
            scratch.rename(self.path)
        except OSError:
            if not self.is_complete():
                raise


class SharedWrite(PendingWrite):
    """All writers use one scratch folder beside the target, and the first one renames it: the target appears at once.

    A scratch folder that a killed writer has left is deleted, and an existing target is replaced.
    """

    def __init__(self, target: Path, *, part: int, barrier: Callable[[], None]) -> None:
        self.target, self.is_first, self.barrier = target, part == 0, barrier
        self.scratch = beside(target, shared=True)
        self.own = self.scratch / f".{part}"
        if self.is_first:
            shutil.rmtree(self.scratch, ignore_errors=True)
            wait_for_room(lambda: self.scratch.mkdir(parents=True, exist_ok=True), self.target)
        barrier()
        self.scratch.mkdir(exist_ok=True)  # NFS may cache for seconds that it did not exist

    def commit(self, write: Callable[[Path], None]) -> None:
        """Returns in every writer once the target is complete."""
        wait_for_room(lambda: self._fill(write), self.target)
        self.barrier()
        if self.is_first:
            wait_for_room(lambda: fsync_folders(self.scratch), self.target)
            before = set_aside(self.target)
            wait_for_room(lambda: self.scratch.rename(self.target), self.target)
            wait_for_room(lambda: fsync_path(self.target.parent), self.target)
            if before is not None:
                shutil.rmtree(before, ignore_errors=True)
        self.barrier()

    def _fill(self, write: Callable[[Path], None]) -> None:
        """Writes this process's files, durable, into the scratch folder of all.

        A disk may notice only while it syncs that it is full. Then the files are lost, though another sync would succeed: so
        they are written again each time. What is half written leaves its room to others meanwhile.
        """
        try:
            self.own.mkdir(parents=True)
            write(self.own)
            files = [path for path in self.own.rglob("*") if path.is_file()]
            for file in files:
                fsync_path(file)
            for file in files:
                place = self.scratch / file.relative_to(self.own)
                place.parent.mkdir(parents=True, exist_ok=True)
                file.rename(place)
        finally:
            shutil.rmtree(self.own, ignore_errors=True)
