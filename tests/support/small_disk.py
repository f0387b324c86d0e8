"""A disk of a few megabytes that a test may fill: a tmpfs in a user and mount namespace, which one child process sees."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS, MEGABYTES = 120, 4


def on_small_disk(folder, module, test):
    """What `python -m MODULE TEST DISK` says on stderr; it must end well. Skips where this user may have no namespace."""
    disk = folder / "disk"
    disk.mkdir()
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, "-Urm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not have a mount namespace, in which a small disk could be mounted")
    mount = f'mount -t tmpfs -o size={MEGABYTES}m small "$1" && shift && exec "$@"'
    child = [sys.executable, "-m", module, test, str(disk)]
    done = subprocess.run(
        [unshare, "-Urm", "sh", "-c", mount, "sh", str(disk), *child],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def fill(disk):
    """Writes until nothing more fits, not even a byte."""
    with (Path(disk) / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * size):
                    pass


def free(disk):
    (Path(disk) / "filler").unlink()


def make_read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)


def make_writable(disk):
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def waiting_until_free(disk, write, meanwhile=lambda: None):
    """Runs `write` in a thread on a full disk, sees that it waits, then frees the disk and waits for its end."""
    fill(disk)
    with ThreadPoolExecutor(1) as others:
        writing = others.submit(write)
        time.sleep(2.0)
        waits = not writing.done()
        meanwhile()
        free(disk)
        writing.result(60.0)
    assert waits
