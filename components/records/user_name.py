"""Who runs this process, for records of what people did."""

from __future__ import annotations

import getpass
import os


def user_name() -> str:
    """The name of the user; the number of one that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container, a user may have no name
        return str(os.getuid())
