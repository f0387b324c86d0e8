"""The interface of the storage: folders, append-only logs and locks, wherever a search keeps them. See README.md here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, Self, TypeVar
from urllib.parse import urlsplit

from components.storage.background_upload import BackgroundUpload

T = TypeVar("T")


class AppendLog(ABC):
    """An append-only log of lines. `location` names it in messages."""

    location: str

    @abstractmethod
    def append(self, line: str) -> None:
        """Returns once the line survives the end of this process and of the machine."""

    @abstractmethod
    def read(self, after: int = 0) -> Iterator[bytes]:
        """Yields every complete line but the first `after`, in order."""

    @abstractmethod
    def close(self) -> None: ...


class UnreadableLockError(BlockingIOError):
    """A lock that nobody can tell whose it is, so it counts as held. The message says the way out."""


class Lock(Protocol):
    """A lock that is held until it is closed or its process ends."""

    def when_lost(self, call: Callable[[str], None]) -> None:
        """Calls back with the reason, from another thread, if another process takes the lock while this one holds it."""
        ...

    def close(self) -> None: ...


class PendingWrite(ABC):
    """A folder that several processes are writing together, each its own files."""

    @abstractmethod
    def commit(self, write: Callable[[Path], None]) -> None:
        """Publishes the files that `write` puts into an empty folder. All writers have done so once the folder is complete.

        On a full disk it waits for room, and `write` is called again, in an empty folder.
        """


@dataclass(frozen=True, slots=True)
class Folder(ABC):
    """A folder on some storage. It need not exist. It is plain data, so that it can be sent to every process of a search.

    A small file is written completely or not at all, and is durable once written. Larger data are whole folders: they are
    filled on a local disk, then appear at once with all their files, or do not appear.

    Every method may raise OSError: FileNotFoundError for what does not exist, StorageError if the storage was unreachable
    for too long or refuses the request.
    """

    uri: str

    # Whether PendingWrite.commit() returns only when the folder is complete. Otherwise its upload continues in the
    # background, and is lost if the process ends before it.
    complete_on_commit: ClassVar[bool]
    # What a user can do if check_access() fails.
    access_advice: ClassVar[str]

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        return urlsplit(self.uri).path.rpartition("/")[2]

    @abstractmethod
    def __truediv__(self, name: str) -> Self: ...

    @property
    @abstractmethod
    def parent(self) -> Self: ...

    @abstractmethod
    def list_names(self) -> list[str]:
        """Returns the names of its files and folders, sorted. Returns none if the folder does not exist.

        Names that begin with a dot are left out: they are of what is half written or half removed.
        """

    @abstractmethod
    def has_file(self, name: str) -> bool: ...

    @abstractmethod
    def read_text(self, name: str) -> str: ...

    @abstractmethod
    def read_bytes(self, name: str) -> bytes: ...

    @abstractmethod
    def read_small(self, name: str, max_bytes: int) -> bytes:
        """Reads a file that anybody may have put there. Never waits for its writer.

        Raises ValueError if it is larger, or no regular file.
        """

    @abstractmethod
    def write_bytes(self, name: str, content: bytes) -> None: ...

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    @abstractmethod
    def delete_file(self, name: str, *, retry: bool = True) -> None:
        """Deletes a file. A missing file is no error. Without `retry` it fails at once if the storage is unreachable."""

    @abstractmethod
    def append_log(self, name: str) -> AppendLog: ...

    @abstractmethod
    def lock(self, name: str) -> Lock:
        """Acquires a lock. Raises BlockingIOError if another process holds it."""

    @abstractmethod
    def check_access(self) -> None:
        """Writes, reads and deletes a small file, without retries. Raises OSError with the reason if that fails."""

    @abstractmethod
    def free_bytes(self) -> int | None:
        """What may still be written to the disk that it is on; None where there is no end. A quota is not always seen."""

    @abstractmethod
    def publish(self, write: Callable[[Path], None]) -> None:
        """Creates this folder from what `write` puts into an empty local folder.

        If another process was faster, its folder stays: both have the same content.
        """

    @abstractmethod
    def begin(self, *, part: int, of: int, barrier: Callable[[], None], uploads: BackgroundUpload) -> PendingWrite:
        """Begins a new version of this folder, which `of` processes write together; all of them call it.

        Args:
            part: the number of this process among the writers, from 0.
            barrier: returns once every writer has called it.
            uploads: for storage that uploads in the background. This process's upload before has completed on return.
        """

    @abstractmethod
    def is_complete(self) -> bool: ...

    @abstractmethod
    def download(self) -> Path:
        """Returns the complete folder on this machine.

        A remote folder is downloaded once per node and verified by its digests.
        """

    @abstractmethod
    def download_matching(self, patterns: Sequence[str]) -> Path:
        """Returns a local folder with the files of these patterns, of a folder that was uploaded without digests.

        They are downloaded once per node, and again if a name, size or modification time has changed. Raises
        FileNotFoundError if no file matches.
        """

    @abstractmethod
    def evict(self) -> None:
        """Deletes this node's copy that download() made, if it made one."""

    @abstractmethod
    def delete_matching(self, pattern: str) -> None:
        """Deletes files of a complete folder, which stays complete. A * of the pattern does not match a slash."""

    @abstractmethod
    def delete(self) -> None:
        """Deletes the folder with all that it contains. It is incomplete from the first moment on."""

    @abstractmethod
    def delete_unfinished(self) -> None:
        """Deletes what ended processes have left half written or half removed in it. Nobody may be writing there now."""

    @classmethod
    def newest_complete(cls, commits: Sequence[T]) -> T | None:
        """Returns the newest of one writer's commits, given in order, that is certainly complete."""
        certain = commits if cls.complete_on_commit else commits[:-1]  # begin() waits for the upload before
        return certain[-1] if certain else None
