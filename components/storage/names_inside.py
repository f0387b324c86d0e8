"""Names of files that come from outside: in the digests of a bucket's folder, in a model's index of weights.

The person who wrote them may have meant a file elsewhere. A name that is joined to a folder is checked here.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from components.errors import InputError

MAX_SHOWN = 80  # letters
# Part of no name here, and of some programs' ways out of a folder: control characters, Windows' separator and drives.
ODD = re.compile(r"[\x00-\x1f\x7f\\]|^[A-Za-z]:")


def inside(name: object, place: object) -> str:
    """Returns the name of a file in a folder, relative to it. Raises InputError for one that could lead out of it.

    Args:
        place: where the name was written, for the message.
    """
    if isinstance(name, str) and name and not ODD.search(name):
        parts = PurePosixPath(name).parts
        if not name.startswith("/") and parts and "/".join(parts) == name and ".." not in parts:
            return name
    raise InputError(
        f"{place}: names the file {ascii(name)[:MAX_SHOWN]}, and may only name files of its own folder: relative, without .."
        " and without other ways out; do not use what has such a name, and get it from where it was made"
    )
