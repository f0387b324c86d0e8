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
    mount = f'mount -t tmpfs -o size={MEGABYTES}m small "$1"'
    return _mounted([unshare, "-Urm"], mount, disk, module, test)


def on_thin_disk(folder, module, test):
    """As on_small_disk, with a disk that promises more room than the one behind it has: it notices while it syncs.

    `behind` beside it is the one to fill and to free. Skips where this user may mount no file as a disk.
    """
    disk, behind = folder / "disk", folder / "behind"
    disk.mkdir()
    behind.mkdir()
    mount = (
        f'mount -t tmpfs -o size={6 * MEGABYTES}m behind "$1/../behind" && cd "$1/../behind" && truncate -s 64m image'
        ' && mkfs.ext4 -q -F image && mount -o loop,commit=600 image "$1"'  # its own records wait, for they find no room
    )
    tools = [shutil.which(name) for name in ("unshare", "mkfs.ext4", "losetup")]
    if os.geteuid() != 0 or not all(tools):
        pytest.skip("only root may mount a file as a disk")
    if subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, "sh", str(disk)], capture_output=True, check=False
    ).returncode:
        pytest.skip("this machine has no loop devices")
    return _mounted(["unshare", "-m"], mount, disk, module, test)


def _mounted(unshare, mount, disk, module, test):
    child = [sys.executable, "-m", module, test, str(disk)]
    done = subprocess.run(
        [*unshare, "sh", "-c", f'{mount} && shift && cd {ROOT} && exec "$@"', "sh", str(disk), *child],
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


def drop_caches():
    Path("/proc/sys/vm/drop_caches").write_text("1")


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
