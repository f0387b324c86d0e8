"""The digest of a version's package: what is loaded is what was registered and proven."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.errors import InputError

PACKAGE_DIGEST_TAG = "turnwise.package_digest"


def package_digest(package: Path) -> str:
    """`sha256:...` over the names and bytes of all files of a package. Links that lead out of it are refused elsewhere."""
    hashed = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        hashed.update(f"{path.relative_to(package).as_posix()}\0{content}\n".encode())
    return f"sha256:{hashed.hexdigest()}"


def check_package(package: Path, expected: str, name: str) -> None:
    """Raises InputError if a package is not what its version's tag says."""
    if (found := package_digest(package)) != expected:
        raise InputError(
            f"{name}: its files are not those that were registered: their digest is {found}, and its tag"
            f" {PACKAGE_DIGEST_TAG} says {expected}; register it again, or serve another version"
        )
