"""What happens while Ray is being started, and when it ends too early, each in a process of its own."""

import subprocess
import sys

from tests.support.programs import environment

STARTING = """
import os, signal, threading, time
import psutil
from components.cluster.ray_session import connected
from workflows.cli import Terminated, raise_on_sigterm

def end_it():
    while not any("gcs_server" in child.name() for child in psutil.Process().children()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=end_it, daemon=True).start()
try:
    with raise_on_sigterm(), connected(num_cpus=1):
        time.sleep(60)
except Terminated:
    raise SystemExit(143)
"""


def test_sigterm_while_ray_starts_is_the_programs_own():
    ended = subprocess.run(
        [sys.executable, "-c", STARTING], env=environment(), timeout=120, check=False, capture_output=True
    )
    assert ended.returncode == 143, ended.stderr.decode()[-2000:]


ENDING = """
import logging, os, time
import psutil
from components.cluster.ray_session import connected

logging.basicConfig(format="%(message)s")
with connected(num_cpus=1):
    next(child for child in psutil.Process().children() if child.name() == "raylet").kill()
    time.sleep(5)
    os._exit(0)
"""


def test_a_cluster_of_its_own_that_ends_is_named():
    ended = subprocess.run(
        [sys.executable, "-c", ENDING], env=environment(), timeout=120, check=False, capture_output=True, text=True
    )
    assert "Ray's raylet on this machine has ended" in ended.stderr, ended.stderr[-2000:]
