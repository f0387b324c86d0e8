"""Where a fresh Python process finds the libraries of this one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from components.registry.own_code import COMMON_NAME


def library_path() -> list[str]:
    """Returns what exists of sys.path, for the PYTHONPATH of a process that runs a version's own code.

    Libraries come by PYTHONPATH, by a runtime environment of Ray or by site.addsitedir, and sys.path alone has them all. Its
    order is kept, and the standard library is in it too: no library may hide a module that it does not hide here. Paths are
    whole, because that process runs in another working directory. Two kinds of folders are left out:

    - the project's code, as in a checkout or in the working directory of a Ray job: a version must run without it;
    - the inside of a package, e.g. workflows/ where one of its programs was started: its modules are no libraries.
    """
    entries = [Path(entry) for entry in dict.fromkeys(map(os.path.abspath, sys.path))]
    return [str(entry) for entry in entries if entry.exists() and not _is_code_alone(entry)]


def _is_code_alone(folder: Path) -> bool:
    """Not where libraries are installed beside the code, e.g. by `pip install --target`."""
    has_code = (folder / COMMON_NAME / "__init__.py").is_file() or (folder / "__init__.py").is_file()
    return has_code and next(folder.glob("*.dist-info"), None) is None
