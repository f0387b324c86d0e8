"""What ends a worker's process by its own fault is known to the one that takes its place. The processes are real."""

import os
import stat
import subprocess
import sys
import time

import pytest

from components.cluster.slots.faults import fault_in_words, noting_faults, take_faults

CHILD = """
import ctypes, os, signal, sys, threading
from components.cluster.slots.faults import noting_faults

def fail():
    {end}

with noting_faults("slot"):
    fail()
"""
ENDS = {
    "Segmentation fault": "ctypes.string_at(0)",
    "Aborted": "os.abort()",
    "Floating point exception": "os.kill(os.getpid(), signal.SIGFPE)",
    "Illegal instruction": "os.kill(os.getpid(), signal.SIGILL)",
    "Bus error": "os.kill(os.getpid(), signal.SIGBUS)",
}
# As torch's watchdogs do it: in a thread that is not Python's.
FOREIGN_ABORT = "libc = ctypes.CDLL(None); handle = ctypes.c_ulong(); libc.pthread_create(ctypes.byref(handle), None, libc.abort, None); libc.pthread_join(handle, None)"  # noqa: E501


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """Short, as a session's folder has to be."""
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    return tmp_path / f"tw-{os.getuid()}" / "faults"


def child(end):
    """A process that ends so: (status, what it said)."""
    code = CHILD.format(end=end)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", ENDS)
def test_a_fault_is_known_by_its_name_and_its_line_once(name, folder, caplog):
    status, _ = child(ENDS[name])
    assert status < 0
    (found,) = take_faults("slot")
    assert found == f"{name} in {'string_at' if name == 'Segmentation fault' else 'fail'} {found[found.index('(') :]}"
    assert ", line " in found
    assert "in fail" in caplog.text  # all frames, for whoever reads the log
    assert take_faults("slot") == []
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(3)", "sys.exit(1)", FOREIGN_ABORT])
def test_other_ends_are_no_fault_of_the_process(end, folder):
    child(end)
    assert take_faults("slot") == []
    assert list(folder.iterdir()) == []


def test_a_process_that_runs_keeps_its_file_and_other_slots_keep_theirs(folder):
    with noting_faults("slot"):
        (file,) = folder.iterdir()
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert take_faults("slot") == []
        assert file.exists()
    child(ENDS["Aborted"])
    assert take_faults("other") == []
    assert len(take_faults("slot")) == 1


def test_what_slots_have_left_long_ago_is_removed(folder):
    child("os.kill(os.getpid(), signal.SIGKILL)")
    (file,) = folder.iterdir()
    os.utime(file, (time.time() - 10 * 86400,) * 2)
    assert take_faults("other") == []
    assert not file.exists()


def test_without_a_folder_a_worker_works_and_its_faults_are_unknown(folder, caplog):
    folder.parent.parent.joinpath(f"tw-{os.getuid()}").write_text("in the way")
    with noting_faults("slot"):
        assert take_faults("slot") == []
    assert "would not be noted" in caplog.text


def test_a_fault_in_no_line_of_python_has_its_name_alone():
    assert fault_in_words("Fatal Python error: Segmentation fault\n\n") == "Segmentation fault"
    assert fault_in_words("Fatal Python error: Aborted\n\n") is None
    assert fault_in_words("") is None
