"""What a Ray cluster of this machine alone keeps from the machine's other users: its folder, its token, its workers' talk."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil

from components.errors import InputError
from components.storage.unfinished import beside

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"  # torch's name
LOOPBACK = "127.0.0.1"
# Ray adds about 65 letters to the folder's path, and a socket's path has 107 at most.
LONGEST_PATH = 40
TOKEN_SETTINGS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")  # where they are set, Ray writes none


@contextlib.contextmanager
def private_session() -> Iterator[str]:
    """Inside, a cluster of this machine alone may be started. Yields the folder for its session; see below."""
    keep_token_private()
    with gloo_on_loopback():
        yield str(session_folder())


def session_folder() -> Path:
    """Returns the folder for the sessions of this user's clusters, which nobody else may enter: logs, sockets, objects.

    It is in RAY_TMPDIR, else in TMPDIR if that is short enough, else in /tmp. Raises InputError if its name is taken.
    """
    name, elsewhere = f"tw-{os.getuid()}", os.environ.get("TMPDIR") or "/tmp"
    usual = elsewhere if len(f"{elsewhere}/{name}") <= LONGEST_PATH else "/tmp"
    folder = Path(os.environ.get("RAY_TMPDIR") or usual).absolute() / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise InputError(
            f"{folder}: is a link, or another user's, and Ray would keep this search's logs and sockets there; set RAY_TMPDIR"
            " to a folder of your own with a short path"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    return folder


def keep_token_private() -> None:
    """Writes the token of this user's clusters, if there is none, for this user alone: Ray would let everybody read it.

    It has the same effect on one that Ray has written. A token from elsewhere stays as it is.
    """
    file = Path.home() / ".ray" / "auth_token"
    if any(os.environ.get(name) for name in TOKEN_SETTINGS) or file.is_symlink():
        return
    with contextlib.suppress(OSError):  # a home that cannot be written: Ray says so
        if not file.exists():
            _create(file, secrets.token_hex(32))
        elif file.stat().st_uid == os.getuid():
            file.chmod(0o600)


def own_secret() -> bytes:
    """Returns a secret of this user on this machine, the same one until its temporary files are removed."""
    file = session_folder() / "secret"
    if not file.exists():
        _create(file, secrets.token_hex(32))
    return file.read_bytes()


def _create(file: Path, content: str) -> None:
    """Another process may do so at the same time: the first one's content stays, and is whole."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    scratch = beside(file)
    with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(content)
    try:
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(scratch)
    finally:
        scratch.unlink()


@contextlib.contextmanager
def gloo_on_loopback() -> Iterator[None]:
    """Inside, processes that are started let gloo listen on the loopback interface alone, unless its user has named one.

    Only for workers that are all on this machine. torch's store, by which they find each other, listens on every interface.
    """
    interface = interface_with(LOOPBACK)
    if GLOO_INTERFACE in os.environ or interface is None:
        yield
        return
    os.environ[GLOO_INTERFACE] = interface
    try:
        yield
    finally:
        os.environ.pop(GLOO_INTERFACE, None)


def interface_with(address: str) -> str | None:
    """Returns the name of this machine's network interface that has the IP address; None if none has it, as behind NAT."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == address for each in addresses):
            return str(name)
    return None
