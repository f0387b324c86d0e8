"""Storage behind a network: S3, servers that speak its protocol, and Google's. It has neither folders nor renames.

A folder is complete when all its parts are: each process that wrote files of it writes, last of all, their digests as
digests.K-of-N.json. So no writer waits for another, and what a kill leaves is an incomplete folder.
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

from components.storage.append_log import ObjectAppendLog
from components.storage.background_upload import BackgroundUpload
from components.storage.folder import Folder, PendingWrite
from components.storage.lease import Lease
from components.storage.names_inside import inside
from components.storage.node_cache import cache_folder, copy_path, get_or_create, move_into_place, new_scratch
from components.storage.regular_files import check_small
from components.storage.retry import StorageError, describe_error, with_retries
from components.storage.room import wait_for_room
from components.storage.transfer import FileDigest, download_unverified, download_verified, upload_file
from components.storage.unfinished import is_hidden

PART = re.compile(r"digests\.(\d+)-of-(\d+)\.json")


class Part(BaseModel):
    """The files that one process wrote into a folder, by their path in it."""

    model_config = ConfigDict(frozen=True)

    files: dict[str, FileDigest]


@dataclass(frozen=True, slots=True)
class ObjectStoreFolder(Folder):
    """scheme://bucket/prefix, with options of pyarrow.fs after a question mark (region, endpoint_override)."""

    complete_on_commit: ClassVar[bool] = False
    access_advice: ClassVar[str] = (
        "make the bucket, or give this machine the right to read, write and delete there (AWS_ENDPOINT_URL names another"
        " server than Amazon's)"
    )

    @property
    def store(self) -> pyarrow.fs.FileSystem:
        parts = urlsplit(self.uri)
        # Without it, a file of a few bytes takes three requests.
        options = [parts.query, "allow_delayed_open=true" if parts.scheme == "s3" else ""]
        return _client(f"{parts.scheme}://{parts.netloc}?{'&'.join(filter(None, options))}".rstrip("?"))

    @property
    def path(self) -> str:
        """The store's name of it: bucket/prefix."""
        parts = urlsplit(self.uri)
        return f"{parts.netloc}{unquote(parts.path)}".rstrip("/")

    def __truediv__(self, name: str) -> ObjectStoreFolder:
        parts = urlsplit(self.uri)
        return ObjectStoreFolder(parts._replace(path=f"{parts.path}/{name}").geturl())

    @property
    def parent(self) -> ObjectStoreFolder:
        parts = urlsplit(self.uri)
        return ObjectStoreFolder(parts._replace(path=parts.path.rpartition("/")[0]).geturl())

    def list_names(self) -> list[str]:
        return sorted(info.base_name for info in self._list() if not is_hidden(info.base_name))

    def has_file(self, name: str) -> bool:
        return bool(with_retries(lambda: self.store.get_file_info(f"{self.path}/{name}").is_file, self.uri))

    def read_text(self, name: str) -> str:
        return self.read_bytes(name).decode()

    def read_bytes(self, name: str) -> bytes:
        return with_retries(lambda: self._read(name), self.uri)

    def read_small(self, name: str, max_bytes: int) -> bytes:
        info = with_retries(lambda: self.store.get_file_info(f"{self.path}/{name}"), self.uri)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise FileNotFoundError(f"{self.uri}/{name} is not there")
        if not info.is_file:
            raise ValueError("is a folder, and must be a file")
        check_small(info.size, max_bytes)
        return self.read_bytes(name)

    def write_bytes(self, name: str, content: bytes) -> None:
        with_retries(lambda: self._write(name, content), self.uri)

    def delete_file(self, name: str, *, retry: bool = True) -> None:
        try:
            if retry:
                with_retries(lambda: self._delete(name), self.uri)
            else:
                self._delete(name)
        except FileNotFoundError:
            return

    def append_log(self, name: str) -> ObjectAppendLog:
        return ObjectAppendLog(self / name)

    def lock(self, name: str) -> Lease:
        return Lease.acquire(self, name)

    def check_access(self) -> None:
        name = f".probe-{uuid.uuid4().hex}"
        try:
            self._write(name, b"?")
            self._read(name)
            self._delete(name)
        except OSError as error:
            raise StorageError(describe_error(error)) from None

    def free_bytes(self) -> int | None:
        return None

    def publish(self, write: Callable[[Path], None]) -> None:
        scratch = new_scratch()
        try:
            write(scratch)
            self.upload(scratch)
            move_into_place(scratch, self._copy())  # this node will read it soon
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def begin(self, *, part: int, of: int, barrier: Callable[[], None], uploads: BackgroundUpload) -> PendingWrite:
        uploads.wait()
        barrier()  # now every writer's upload before has completed
        if part == 0:
            self.delete()  # files of an earlier attempt
        barrier()
        return UploadedWrite(self, part=part, of=of, uploads=uploads)

    def upload(self, source: Path, *, part: int = 0, of: int = 1) -> None:
        """Uploads this process's files of a folder that `of` processes write. The last upload makes it complete."""
        digests = {}
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            name = file.relative_to(source).as_posix()
            digests[name] = with_retries(
                lambda file=file, name=name: upload_file(file, self.store, f"{self.path}/{name}"),  # type: ignore[misc]
                f"{self.uri}/{name}",
            )
        self._write_part(f"digests.{part}-of-{of}.json", Part(files=digests))

    def is_complete(self) -> bool:
        return bool(self._parts())

    def download(self) -> Path:
        return get_or_create(self._copy(), self._download)

    def download_matching(self, patterns: Sequence[str]) -> Path:
        files = sorted(
            (info.base_name, info.size, info.mtime_ns)
            for info in self._list()
            if info.is_file and any(fnmatch.fnmatch(info.base_name, pattern) for pattern in patterns)
        )
        if not files:
            raise FileNotFoundError(f"{self.uri} holds no {', '.join(patterns)}")
        key = hashlib.sha256(json.dumps([self.uri, files]).encode()).hexdigest()[:32]
        sizes = {inside(name, self.uri): size for name, size, _ in files}
        return get_or_create(copy_path(key), lambda target: self._download_unverified(sizes, target))

    def evict(self) -> None:
        shutil.rmtree(self._copy(), ignore_errors=True)

    def delete_matching(self, pattern: str) -> None:
        for part in self._parts():
            files = self._read_part(part).files
            unwanted = [
                name for name in files if PurePosixPath(name).match(pattern) and pattern.count("/") == name.count("/")
            ]
            if unwanted:
                kept = {name: digest for name, digest in files.items() if name not in unwanted}
                self._write_part(part, Part(files=kept))
            for name in unwanted:
                self.delete_file(name)

    def delete(self) -> None:
        for name in self.list_names():
            if PART.fullmatch(name):
                self.delete_file(name)
        try:
            with_retries(lambda: self.store.delete_dir(self.path), self.uri)
        except FileNotFoundError:
            return

    def delete_unfinished(self) -> None:
        """Nothing is renamed here: a half is a folder without all its digests, which the next writer of it deletes."""

    def _list(self) -> list[pyarrow.fs.FileInfo]:
        selector = pyarrow.fs.FileSelector(self.path, allow_not_found=True)
        return with_retries(lambda: self.store.get_file_info(selector), self.uri)

    def _read(self, name: str) -> bytes:
        with self.store.open_input_stream(f"{self.path}/{name}") as stream:
            return bytes(stream.read())

    def _write(self, name: str, content: bytes) -> None:
        with self.store.open_output_stream(f"{self.path}/{name}") as stream:
            stream.write(content)

    def _delete(self, name: str) -> None:
        self.store.delete_file(f"{self.path}/{name}")

    def _read_part(self, name: str) -> Part:
        """Raises InputError if it names a file outside of this folder."""
        part = Part.model_validate_json(self.read_text(name))
        for file in part.files:
            inside(file, f"{self.uri}/{name}")
        return part

    def _write_part(self, name: str, part: Part) -> None:
        self.write_text(name, part.model_dump_json(indent=1) + "\n")

    def _parts(self) -> list[str]:
        """Returns the names of all parts' digests; none if one is missing, since the folder is incomplete then."""
        found: dict[int, list[str]] = {}
        for name in self.list_names():
            if match := PART.fullmatch(name):
                found.setdefault(int(match[2]), []).append(name)
        return next((names for count, names in sorted(found.items()) if len(names) == count), [])

    def _copy(self) -> Path:
        """Returns where this node keeps its copy; the key is the content. Raises FileNotFoundError if it is incomplete."""
        parts = self._parts()
        if not parts:
            raise FileNotFoundError(f"{self.uri} is not there, or not whole")
        content = "\n".join([self.uri, *(self.read_text(part) for part in parts)])
        return copy_path(hashlib.sha256(content.encode()).hexdigest()[:32])

    def _download(self, target: Path) -> None:
        for part in self._parts():
            for name, digest in self._read_part(part).files.items():
                with_retries(
                    lambda name=name, digest=digest: download_verified(  # type: ignore[misc]
                        self.store, f"{self.path}/{name}", target / name, digest, self.uri
                    ),
                    self.uri,
                )

    def _download_unverified(self, sizes: dict[str, int], target: Path) -> None:
        for name, size in sizes.items():
            with_retries(
                lambda name=name, size=size: download_unverified(  # type: ignore[misc]
                    self.store, f"{self.path}/{name}", target / name, size
                ),
                self.uri,
            )


class UploadedWrite(PendingWrite):
    """Each writer fills a scratch folder of its own node; commit() returns then, and uploads it in the background."""

    def __init__(self, folder: ObjectStoreFolder, *, part: int, of: int, uploads: BackgroundUpload) -> None:
        self.folder, self.part, self.of, self.uploads = folder, part, of, uploads

    def commit(self, write: Callable[[Path], None]) -> None:
        scratch = wait_for_room(lambda: _fill(write), cache_folder())
        self.uploads.start(lambda: self._upload(scratch))

    def _upload(self, scratch: Path) -> None:
        try:
            self.folder.upload(scratch, part=self.part, of=self.of)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _fill(write: Callable[[Path], None]) -> Path:
    """Returns a new scratch folder with what `write` has put into it."""
    scratch = new_scratch()
    try:
        write(scratch)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return scratch


@functools.cache
def _client(root: str) -> pyarrow.fs.FileSystem:
    """Returns the client of a bucket, one per process."""
    return pyarrow.fs.FileSystem.from_uri(root)[0]
