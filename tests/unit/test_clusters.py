"""What the simulated clusters of other tests rely on: nothing outlives the test, however it ends."""

import subprocess
import sys

import psutil

from tests.support.clusters import KEEPER
from tests.support.servers import until

FAMILY = (
    "import subprocess, sys, time; subprocess.Popen(['sleep', '600'], start_new_session=True); print('up', flush=True)"
)


def test_all_that_came_of_a_command_ends_with_the_one_who_asked_for_it(tmp_path):
    """Orphans in sessions of their own, too: a raylet is one when the autoscaler that started it has died."""
    session = tmp_path / "session"
    session.mkdir()
    command = [sys.executable, str(KEEPER), str(session), sys.executable, "-c", FAMILY]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert keeper.stdout.readline() == b"up\n"
    until(lambda: orphans_of(keeper), 30)
    (orphan,) = orphans_of(keeper)
    keeper.stdin.close()
    keeper.wait(30)
    keeper.stdout.close()
    assert not orphan.is_running()
    assert not session.exists()


def orphans_of(keeper):
    return [child for child in psutil.Process(keeper.pid).children() if child.name() == "sleep"]
