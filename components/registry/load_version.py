"""A registered version as MLflow's model, in a process that may have imported other versions or the installed package."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import mlflow.pyfunc
from mlflow.pyfunc import PyFuncModel

from components.registry.own_code import CODE, COMMON_NAME, rename_package
from components.registry.versions import download_files
from components.tracking.mlflow_access import tracking_uri


def load_version(model_uri: str, uri: str | None = None) -> PyFuncModel:
    """Loads models:/NAME@ALIAS or models:/NAME/VERSION, with the code that the version brings.

    Returns what `mlflow.pyfunc.load_model` returns. That function alone is enough for a version whose package has a name of
    its own (own_code). In a version made before, the package is called `components`. Where the process has imported another
    package of that name, `mlflow.pyfunc.load_model` takes the modules of that one: it raises "No module named components...",
    or runs code that is not the version's. This function loads a renamed copy of the code instead.

    Raises InputError if there is no such version.

    Args:
        uri: where the registry is; by default MLFLOW_TRACKING_URI, else mlflow.db here.
    """
    folder = download_files(model_uri, tracking_uri(given=uri))
    if (folder / CODE / COMMON_NAME).is_dir():
        folder = _with_renamed_code(folder)
    return mlflow.pyfunc.load_model(str(folder))


def _with_renamed_code(version: Path) -> Path:
    """A folder with a renamed copy of the version's code, its small files, and links to its folders, which are large."""
    folder = Path(tempfile.mkdtemp(dir=_process_folder()))
    for entry in version.iterdir():
        if entry.name == CODE:
            _copy_code(entry, folder / CODE)
        elif entry.is_dir():
            (folder / entry.name).symlink_to(entry.absolute())
        else:
            shutil.copyfile(entry, folder / entry.name)  # MLflow refuses an MLmodel that is a link
    rename_package(folder)
    return folder


def _copy_code(source: Path, target: Path) -> None:
    """Without the modes, which may forbid writing: the copy is rewritten and deleted later."""
    target.mkdir()
    for entry in source.iterdir():
        if not entry.is_dir():
            shutil.copyfile(entry, target / entry.name)
        elif entry.name != "__pycache__":
            _copy_code(entry, target / entry.name)


@cache
def _process_folder() -> Path:
    """Kept until the process ends: code that was imported from it imports more of itself later."""
    folder = tempfile.mkdtemp(prefix="turnwise-versions-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
