"""A Python that has no libraries of its own: they come by PYTHONPATH, but for some that are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import ROOT, SECONDS, command, environment


@dataclass(frozen=True)
class BarePython:
    executable: Path
    search_path: tuple[str, ...]

    def run(self, folder: Path, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Runs a program of the product, to its end."""
        return self._run(folder, command(program, *arguments)[1:])

    def distributions(self, folder: Path) -> set[str]:
        """The names of what is installed there, as Python sees it."""
        code = "import importlib.metadata as found; print(*{one.name for one in found.distributions()})"
        return set(self._run(folder, ["-c", code]).stdout.split())

    def _run(self, folder: Path, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.executable), *arguments],
            cwd=folder,
            env={**environment(), "PYTHONPATH": os.pathsep.join(self.search_path)},
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def bare_python(folder: Path, *, missing: tuple[str, ...]) -> BarePython:
    """Makes a new environment in the folder. The project's own code comes by PYTHONPATH, too.

    Args:
        missing: how the names of packages and metadata begin that are left out.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "bare")], check=True)
    (folder / "site").mkdir()
    for library in _installed():
        if not library.name.startswith(missing) and not (folder / "site" / library.name).exists():
            (folder / "site" / library.name).symlink_to(library)
    return BarePython(folder / "bare" / "bin" / "python", (str(ROOT), str(folder / "site")))


def _installed() -> Iterator[Path]:
    """Yields the packages, modules and metadata in the folders of sys.path that hold any."""
    for entry in map(Path, sys.path):
        if next(entry.glob("*.dist-info"), None) is not None:
            yield from entry.iterdir()
