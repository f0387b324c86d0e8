"""A folder of the storage, wherever that is: the one seam between what a search keeps and the place it is kept in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import unquote, urlsplit

from components.storage.append_log import LineLog
from components.storage.file_lock import Lock
from components.storage.uri import checked, is_remote


@dataclass(frozen=True, slots=True)
class Folder(ABC):
    """Plain, so that it travels to every process of a search. It need not exist.

    Small files are written whole or not at all, and survive this machine once written. Larger things are whole folders:
    filled on a local disk and then there at once with all their files, or not there at all.

    Anything here may raise OSError: FileNotFoundError for what is not there, StorageError where the storage has been away
    for too long, or will never do what is asked.
    """

    uri: str
    lags: ClassVar[bool] = False  # whether a checkpoint may have a name here before it is whole

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
    def names(self) -> list[str]:
        """Of the files and folders in it, sorted; none if it does not exist."""

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    @abstractmethod
    def read_text(self, name: str) -> str: ...

    @abstractmethod
    def read_bytes(self, name: str) -> bytes: ...

    @abstractmethod
    def write_text(self, name: str, text: str) -> None: ...

    @abstractmethod
    def log(self, name: str) -> LineLog:
        """An append-only file of lines."""

    @abstractmethod
    def lock(self, name: str) -> Lock:
        """Held as long as the answer lives and is not closed. Raises BlockingIOError if somebody else holds it."""

    @abstractmethod
    def probe(self) -> None:
        """Writes, reads and removes a small file, without patience. Raises OSError with the reason if that cannot be."""

    @abstractmethod
    def fill(self, write: Callable[[Path], None]) -> None:
        """Makes this folder whole of what `write` puts into an empty local one.

        If another process was faster its folder stays: both are made of the same.
        """

    @abstractmethod
    def is_whole(self) -> bool: ...

    @abstractmethod
    def local(self) -> Path:
        """The whole folder on this machine, checked by its digests where it had to travel, and then only once per node."""

    @abstractmethod
    def copied(self, patterns: Sequence[str]) -> Path:
        """The files of these patterns on this machine, of a folder that somebody else has put there without digests.

        Brought once per node and state: what has other names, sizes or times there is brought anew. Raises
        FileNotFoundError if there are none.
        """

    @abstractmethod
    def forget_local(self) -> None:
        """Frees what local() has brought to this node, if it had to bring it."""

    @abstractmethod
    def discard(self, pattern: str) -> None:
        """Removes files of a whole folder, which stays whole without them. A * of the pattern stays within one name."""

    @abstractmethod
    def remove(self) -> None:
        """With all that is in it. From the first moment on it is not whole."""


def folder_at(place: str | Path) -> Folder:
    """The folder that a path or a URI names. Raises ValueError for a URI that names none."""
    uri = checked(str(place))
    if is_remote(uri):
        from components.storage.object_store import RemoteFolder  # pyarrow's clients, for those who need them

        parts = urlsplit(uri)
        return RemoteFolder(parts._replace(path=parts.path.rstrip("/")).geturl())
    from components.storage.local import LocalFolder

    path = unquote(urlsplit(uri).path) if uri.startswith("file:") else uri
    return LocalFolder(str(Path(path).expanduser().absolute()))
