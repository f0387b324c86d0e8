"""Programs whose output loses its reader: a pipe that is closed, and a terminal that is."""

import os
import pty
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from components.experiment.load_experiment import load_experiment
from components.records.driver_presence import DriverInbox
from components.records.manifest import SearchManifest

ROOT = Path(__file__).parents[2]
SECONDS = 60
# It prints until it has been told that nobody reads, then goes on, and leaves a file when it is done.
PROGRAM = """
    import contextlib, logging, signal, sys, time
    from pathlib import Path
    from components.lasting_output import lasting_output

    @lasting_output()
    def main():
        print("begun", flush=True)
        while not Path("gone").exists():
            time.sleep(0.01)
        for line in range(10_000):
            print("line", line)
            print("line", line, file=sys.stderr)
        logging.warning("a library says something")
        sys.stdout.flush()
        Path("done").write_text("done")
        return 3

    raise SystemExit(main())
"""


def start(folder, **streams):
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **streams,
    )


def test_a_program_goes_on_when_the_reader_of_its_pipe_goes_away(tmp_path):
    process = start(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.readline() == b"begun\n"
    process.stdout.close()
    (tmp_path / "gone").touch()
    assert process.wait(SECONDS) == 3
    assert (tmp_path / "done").read_text() == "done"


def test_a_program_goes_on_when_its_terminal_is_closed(tmp_path):
    """It is the leader of the terminal's session, so the kernel sends it SIGHUP, and its writes fail."""
    pid, terminal = pty.fork()
    if pid == 0:
        try:
            os.chdir(tmp_path)
            os.environ["PYTHONPATH"] = str(ROOT)
            os.execv(sys.executable, [sys.executable, "-c", textwrap.dedent(PROGRAM)])
        finally:
            os._exit(99)
    assert b"begun" in os.read(terminal, 100)
    os.close(terminal)
    (tmp_path / "gone").touch()
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 3
    assert (tmp_path / "done").read_text() == "done"


def test_the_streams_and_the_answer_to_a_hang_up_are_as_before_afterwards():
    from components.lasting_output import lasting_output

    before = sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)
    with lasting_output():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert sys.stdout.encoding == before[0].encoding
    assert (sys.stdout, sys.stderr, signal.getsignal(signal.SIGHUP)) == before


@pytest.mark.parametrize("prints", ["show('word')", "show_json({})", "make_console().print('word')"])
def test_a_program_that_only_prints_ends_without_a_word_when_nobody_reads(prints):
    process = subprocess.Popen(
        [sys.executable, "-c", f"from workflows.cli import *; input(); {prints}; raise SystemExit(3)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    process.stdin.write(b"\n")
    process.stdin.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(SECONDS) == -signal.SIGPIPE


def test_who_watches_a_search_in_a_terminal_that_is_closed_watches_no_longer(toy_search):
    manifest = SearchManifest(
        search_id="one", experiment=load_experiment("toy.yaml"), created=1.0, prepared="p", budget=10
    )
    folder = manifest.experiment.folder / "one"
    manifest.write(folder)
    with DriverInbox(folder):
        terminal, its_end = pty.openpty()
        # The terminal that a process is in is what sends SIGHUP. (A fork of this process, which has threads, may hang.)
        words = ["setsid", "--ctty", sys.executable, str(ROOT / "workflows" / "tune.py"), "toy.yaml", "--watch"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        watching = subprocess.Popen(words, stdin=its_end, stdout=its_end, stderr=its_end, env=environment)
        os.close(its_end)
        shown = b""
        while b"one" not in shown:
            shown += os.read(terminal, 1000)  # an OSError once the program has ended
        os.close(terminal)
        assert watching.wait() == -signal.SIGHUP
