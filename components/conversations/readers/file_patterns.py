"""The files that a pattern names: `*`, `?` and `[...]` in a name, and `**` for folders of any depth."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MAX_FILES = 100_000  # of a pattern, and folders below a `**`


class TooManyFilesError(ValueError):
    """A pattern that names more than anybody means."""


def files_matching(pattern: str) -> list[str]:
    """Returns the files in order. `**` does not follow links to folders: they may lead round in circles.

    Raises TooManyFilesError for more than MAX_FILES of them.
    """
    return sorted({path for path in _bounded(_paths_matching(pattern), "files") if Path(path).is_file()})


def _paths_matching(pattern: str) -> Iterator[str]:
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return
    at = parts.index("**")
    above, below = "/".join(parts[:at]), "/".join(parts[at + 1 :]) or "*"
    start = "/" if pattern.startswith("/") and at == 1 else above
    for root in glob.iglob(start) if start else [""]:  # noqa: PTH207
        for folder in _bounded(_folders_below(root), "folders"):
            yield from _paths_matching(f"{glob.escape(folder)}/{below}" if folder else below)


def _folders_below(root: str) -> Iterator[str]:
    """Yields the folder itself and all below it, without hidden ones."""
    for folder, inside, _ in os.walk(root or "."):
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield (folder if root else folder.removeprefix(".").removeprefix("/")).rstrip("/")


def _bounded(paths: Iterator[str], what: str) -> Iterator[str]:
    yield from islice(paths, MAX_FILES)
    if next(paths, None) is not None:
        raise TooManyFilesError(f"names more than {MAX_FILES:,} {what}; name a folder further down")
