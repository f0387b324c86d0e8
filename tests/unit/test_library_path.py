"""The folders in which the process of a verification looks for libraries: those of the process that starts it."""

import sys
import sysconfig
from pathlib import Path

import pytest

from components.registry.library_path import library_path
from components.registry.own_code import INSTALLED
from workflows import cli


@pytest.fixture
def folder(tmp_path):
    """A function that makes a folder for sys.path with these files."""

    def folder(name, *files):
        for file in files:
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).touch()
        return str(tmp_path / name)

    return folder


def test_libraries_are_found_in_the_order_of_this_process(folder, monkeypatch):
    first, second = folder("first", "library.py"), folder("second", "other.py")
    monkeypatch.setattr(
        sys, "path", [second, first, sysconfig.get_path("stdlib"), first, sysconfig.get_path("purelib")]
    )
    assert library_path() == [second, first, sysconfig.get_path("stdlib"), sysconfig.get_path("purelib")]


def test_the_working_directory_is_named_and_what_does_not_exist_is_left_out(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder("here", "library.py"))
    monkeypatch.setattr(sys, "path", ["", str(tmp_path / "python311.zip"), "../here"])
    assert library_path() == [str(tmp_path / "here")]


def test_the_projects_own_code_is_left_out(folder, monkeypatch):
    job = folder("job", "components/__init__.py", "workflows/__init__.py")
    program = folder("job", "workflows/tune.py") + "/workflows"
    monkeypatch.setattr(sys, "path", [program, job, str(INSTALLED.parent), str(Path(cli.__file__).parent)])
    assert library_path() == []


def test_libraries_beside_the_projects_code_are_found(folder, monkeypatch):
    target = folder("target", "components/__init__.py", "mlflow/__init__.py", "mlflow-3.17.2.dist-info/METADATA")
    monkeypatch.setattr(sys, "path", [target])
    assert library_path() == [target]
