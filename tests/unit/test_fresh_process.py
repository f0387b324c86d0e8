"""A process that is started ahead is as fresh as one that starts when it is needed, and never stays behind."""

import json
import subprocess
from pathlib import Path

import pytest

from components.registry import fresh_process
from components.registry.fresh_process import FreshProcess, begin_ahead, drop_ahead, take
from tests.support.servers import until

SECONDS = 120.0
TELLS = """
import json, os, sys
from beside import NAME
facts = {
    "arguments": sys.argv[1:], "folder": os.getcwd(), "first": sys.path[0], "name": NAME, "main": __name__,
    "components": "components" in sys.modules, "variable": os.environ.get("TURNWISE_TEST"),
}
with open(sys.argv[1], "w") as file:
    json.dump(facts, file)
print("no traceback", file=sys.stderr)
raise SystemExit(7)
"""


@pytest.fixture
def code(tmp_path):
    """A folder with a package, which only a process that works there can import."""
    package = tmp_path / "code" / "own"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tells.py").write_text(TELLS)
    (tmp_path / "code" / "beside.py").write_text("NAME = 'beside'")
    return tmp_path / "code"


@pytest.fixture
def nothing_imported(monkeypatch, tmp_path):
    """Of the libraries, so that a test need not wait for them; what runs is the same program otherwise."""
    worker = tmp_path / "worker.py"
    source = Path(fresh_process.fresh_worker.__file__).read_text()
    libraries = '"torch", "transformers", "peft", "mlflow.pyfunc"'
    assert libraries in source
    worker.write_text(source.replace(libraries, '"json",'))
    monkeypatch.setattr(fresh_process.fresh_worker, "__file__", str(worker))


@pytest.mark.usefixtures("nothing_imported")
def test_it_runs_a_module_as_python_does(code, tmp_path, monkeypatch):
    monkeypatch.setenv("TURNWISE_TEST", "given")
    status, stderr = FreshProcess().run(code, "own.tells", [str(tmp_path / "facts.json")], SECONDS)
    assert (status, stderr) == (7, "no traceback\n")
    assert json.loads((tmp_path / "facts.json").read_text()) == {
        "arguments": [str(tmp_path / "facts.json")],
        "folder": str(code),
        "first": str(code),
        "name": "beside",
        "main": "__main__",
        "components": False,
        "variable": "given",
    }


def test_the_libraries_are_there_before_the_work_is(code, tmp_path):
    (code / "own" / "tells.py").write_text(
        "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text(str({'torch', 'peft', 'mlflow'} - set(sys.modules)))"
    )
    status, stderr = FreshProcess().run(code, "own.tells", [str(tmp_path / "missing")], SECONDS)
    assert (status, (tmp_path / "missing").read_text()) == (0, "set()"), stderr


@pytest.mark.usefixtures("nothing_imported")
def test_one_that_was_started_ahead_is_taken_once(code):
    begin_ahead()
    begin_ahead()
    (ahead,) = fresh_process._ahead
    assert take() is ahead
    later = take()
    assert later is not ahead
    for process in (ahead, later):
        assert process.run(code, "beside", [], SECONDS)[0] == 0
        assert not process.is_waiting()


@pytest.mark.usefixtures("nothing_imported")
def test_one_that_has_died_meanwhile_is_replaced():
    begin_ahead()
    (ahead,) = fresh_process._ahead
    ahead._process.kill()
    until(lambda: not ahead.is_waiting(), SECONDS)
    process = take()
    assert process is not ahead
    process.end()


@pytest.mark.usefixtures("nothing_imported")
def test_one_that_nobody_took_is_ended():
    begin_ahead()
    (ahead,) = fresh_process._ahead
    drop_ahead()
    assert not ahead.is_waiting()
    assert fresh_process._ahead == []


@pytest.mark.usefixtures("nothing_imported")
def test_it_ends_with_the_process_that_started_it():
    process = FreshProcess()
    process._process.stdin.close()  # as the system does when that process is killed
    assert process._process.wait(SECONDS) == 0


@pytest.mark.usefixtures("nothing_imported")
def test_its_time_is_limited(code):
    (code / "beside.py").write_text("import time; time.sleep(600)")
    process = FreshProcess()
    with pytest.raises(subprocess.TimeoutExpired):
        process.run(code, "beside", [], 2.0)
    assert not process.is_waiting()
