"""What may be copied out of a folder that others have filled: its own files, and nothing that its links lead to elsewhere."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

from components.errors import InputError
from components.storage.permissions import readable_as_usual
from components.storage.regular_files import kind_of

# A hub cache has models--OWNER--NAME/snapshots/REVISION/, full of links into models--OWNER--NAME/blobs/.
HUB_MODEL, HUB_SNAPSHOTS, HUB_BLOBS = "models--", "snapshots", "blobs"


def check_regular(directory: Path) -> None:
    """Raises InputError if something in a model's directory is neither file nor folder: opening a pipe may wait without end.

    Looks into its folders, too, and not deeper: no file of a model lies there. Links are followed, since a model's files may
    lie elsewhere, and reading them there gives them to nobody.
    """
    for path in [*sorted(directory.glob("*")), *sorted(directory.glob("*/*"))]:
        if path.exists() and not (path.is_file() or path.is_dir()):
            kind = kind_of(path.stat().st_mode)
            raise InputError(f"{path}: is a {kind}, and a model has only files and folders; take it out")


def copy_own(file: Path, target: Path, *, of: Path) -> None:
    """Copies a regular file of the directory `of`, or of its folders; the copy has the mode of a new file.

    Raises InputError for a link that leads out of the directory, and for what is no file.
    """
    check_own(file, of=of)
    shutil.copyfile(file, target)
    readable_as_usual(target)


def check_own(file: Path, *, of: Path) -> None:
    """Raises InputError unless it is a regular file in the directory `of`, or a link to one there.

    The blobs of a hub cache belong to the directories of its snapshots.
    """
    found = file.resolve()
    if not any(found.is_relative_to(root) for root in _roots(of)):
        raise InputError(
            f"{file}: is a link to {found}, which lies outside, and what lies there is not copied; put the file itself in its"
            " place if you mean it, or take the link out"
        )
    if not stat.S_ISREG(mode := found.stat().st_mode):
        raise InputError(f"{file}: is a {kind_of(mode)}, and must be a file")


def _roots(directory: Path) -> list[Path]:
    own = directory.resolve()
    cached = own.parent.parent
    is_snapshot = own.parent.name == HUB_SNAPSHOTS and cached.name.startswith(HUB_MODEL)
    return [own, cached / HUB_BLOBS] if is_snapshot else [own]
