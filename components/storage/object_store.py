"""Storage behind a network: S3 and whatever speaks its language, and Google's. There are no folders and no renames there.

A folder is whole when all its parts have said so: each process that wrote files of it writes, last of all, the digests of
its own as digests.K-of-N.json. So nobody waits for anybody, and what a kill leaves is no whole folder.
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar
from urllib.parse import unquote, urlsplit

import pyarrow.fs
from pydantic import BaseModel, ConfigDict

from components.storage.append_log import LineObjects
from components.storage.base import Folder
from components.storage.lease import Lease
from components.storage.node_cache import copy_of, get_or_create, move_into_place, new_scratch
from components.storage.retry import StorageError, reason_of, with_retries
from components.storage.transfer import FileDigest, bring, fetch, send

PART = re.compile(r"digests\.(\d+)-of-(\d+)\.json")


class Part(BaseModel):
    """What one process wrote into a folder, by file name relative to it."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, FileDigest]


@dataclass(frozen=True, slots=True)
class RemoteFolder(Folder):
    """scheme://bucket/prefix, with what pyarrow.fs understands behind a question mark (region, endpoint_override)."""

    lags: ClassVar[bool] = True

    @property
    def store(self) -> pyarrow.fs.FileSystem:
        parts = urlsplit(self.uri)
        # Without it, a file of a few bytes takes three requests.
        options = [parts.query, "allow_delayed_open=true" if parts.scheme == "s3" else ""]
        return _client(f"{parts.scheme}://{parts.netloc}?{'&'.join(filter(None, options))}".rstrip("?"))

    @property
    def path(self) -> str:
        """As the store calls it: bucket/prefix."""
        parts = urlsplit(self.uri)
        return f"{parts.netloc}{unquote(parts.path)}".rstrip("/")

    def __truediv__(self, name: str) -> RemoteFolder:
        parts = urlsplit(self.uri)
        return RemoteFolder(parts._replace(path=f"{parts.path}/{name}").geturl())

    @property
    def parent(self) -> RemoteFolder:
        parts = urlsplit(self.uri)
        return RemoteFolder(parts._replace(path=parts.path.rpartition("/")[0]).geturl())

    def names(self) -> list[str]:
        chosen = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return sorted(info.base_name for info in with_retries(lambda: self.store.get_file_info(chosen), self.uri))

    def has(self, name: str) -> bool:
        return bool(with_retries(lambda: self.store.get_file_info(f"{self.path}/{name}").is_file, self.uri))

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_bytes(self, name: str) -> bytes:
        return with_retries(lambda: self._read(name), self.uri)

    def write_text(self, name: str, text: str) -> None:
        with_retries(lambda: self._write(name, text.encode()), self.uri)

    def delete(self, name: str) -> None:
        """A file; one that is not there is no matter."""
        try:
            with_retries(lambda: self.store.delete_file(f"{self.path}/{name}"), self.uri)
        except FileNotFoundError:
            return

    def log(self, name: str) -> LineObjects:
        return LineObjects(self / name)

    def lock(self, name: str) -> Lease:
        return Lease.taken(self, name)

    def probe(self) -> None:
        name = f".probe-{uuid.uuid4().hex}"
        try:
            self._write(name, b"?")
            self._read(name)
            self.store.delete_file(f"{self.path}/{name}")
        except OSError as error:
            raise StorageError(reason_of(error)) from None

    def fill(self, write: Callable[[Path], None]) -> None:
        scratch = new_scratch()
        try:
            write(scratch)
            self.upload(scratch)
            move_into_place(scratch, self._copy())  # who made it will want it
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def upload(self, source: Path, *, part: int = 0, of: int = 1) -> None:
        """This process's share of a folder that `of` processes fill. The folder is whole once all have come to their end."""
        digests = {}
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            digests[name] = with_retries(
                lambda file=file, name=name: send(file, self.store, f"{self.path}/{name}"),  # type: ignore[misc]
                f"{self.uri}/{name}",
            )
        self.write_text(f"digests.{part}-of-{of}.json", Part(files=digests).model_dump_json(indent=1) + "\n")

    def is_whole(self) -> bool:
        return bool(self._parts())

    def local(self) -> Path:
        return get_or_create(self._copy(), self._download)

    def copied(self, patterns: Sequence[str]) -> Path:
        chosen = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        found = with_retries(lambda: self.store.get_file_info(chosen), self.uri)
        files = sorted(
            (info.base_name, info.size, info.mtime_ns)
            for info in found
            if info.is_file and any(fnmatch.fnmatch(info.base_name, pattern) for pattern in patterns)
        )
        if not files:
            raise FileNotFoundError(f"{self.uri} holds no {', '.join(patterns)}")
        key = hashlib.sha256(json.dumps([self.uri, files]).encode()).hexdigest()[:32]
        return get_or_create(copy_of(key), lambda target: self._bring({name: size for name, size, _ in files}, target))

    def forget_local(self) -> None:
        shutil.rmtree(self._copy(), ignore_errors=True)

    def discard(self, pattern: str) -> None:
        for part in self._parts():
            files = Part.model_validate_json(self.read_text(part)).files
            unwanted = [
                name for name in files if PurePosixPath(name).match(pattern) and pattern.count("/") == name.count("/")
            ]
            if unwanted:
                kept = {name: digest for name, digest in files.items() if name not in unwanted}
                self.write_text(part, Part(files=kept).model_dump_json(indent=1) + "\n")
            for name in unwanted:
                self.delete(name)

    def remove(self) -> None:
        for name in self.names():
            if PART.fullmatch(name):
                self.delete(name)
        try:
            with_retries(lambda: self.store.delete_dir(self.path), self.uri)
        except FileNotFoundError:
            return

    def _read(self, name: str) -> bytes:
        with self.store.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def _write(self, name: str, content: bytes) -> None:
        with self.store.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(content)

    def _parts(self) -> list[str]:
        """The names of all parts' digests; none if one is missing, for then nothing holds."""
        found: dict[int, list[str]] = {}
        for name in self.names():
            if match := PART.fullmatch(name):
                found.setdefault(int(match[2]), []).append(name)
        return next((names for count, names in sorted(found.items()) if len(names) == count), [])

    def _copy(self) -> Path:
        """Where the copy lies on this node, under what it is a copy of. Raises FileNotFoundError if this is not whole."""
        parts = self._parts()
        if not parts:
            raise FileNotFoundError(f"{self.uri} is not there, or not whole")
        content = "\n".join([self.uri, *(self.read_text(part) for part in parts)])
        return copy_of(hashlib.sha256(content.encode()).hexdigest()[:32])

    def _bring(self, sizes: dict[str, int], target: Path) -> None:
        for name, size in sizes.items():
            with_retries(
                lambda name=name, size=size: bring(self.store, f"{self.path}/{name}", target / name, size),  # type: ignore[misc]
                self.uri,
            )

    def _download(self, target: Path) -> None:
        for part in self._parts():
            for name, digest in Part.model_validate_json(self.read_text(part)).files.items():
                with_retries(
                    lambda name=name, digest=digest: fetch(  # type: ignore[misc]
                        self.store, f"{self.path}/{name}", target / name, digest, self.uri
                    ),
                    self.uri,
                )


@functools.cache
def _client(root: str) -> pyarrow.fs.FileSystem:
    """One for each bucket and process."""
    return pyarrow.fs.FileSystem.from_uri(root)[0]
