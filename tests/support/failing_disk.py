"""A real disk (ext4 in a file) that fails while it is written to, and comes back once it has been mounted again."""

import os
import shutil
import subprocess
from contextlib import contextmanager

import pytest

from tests.support.servers import until

UNUSED_SECONDS = 60


class FailingDisk:
    def __init__(self, folder):
        self.path, self._image = folder / "disk", folder / "image"
        self.path.mkdir()
        self._image.touch()
        os.truncate(self._image, 300_000_000)

    def make(self):
        """Skips where this user may mount no file as a disk."""
        if os.geteuid() != 0 or not shutil.which("mkfs.ext4"):
            pytest.skip("only root may mount a file as a disk")
        subprocess.run(["mkfs.ext4", "-q", "-F", str(self._image)], check=True)
        if not self._run("mount", "-o", "loop", self._image, self.path):
            pytest.skip("this machine has no loop devices")

    def fail(self):
        """As the kernel does after an error of the device: from now on nothing can be written, whatever is open."""
        assert self._run("mount", "-o", "remount,abort", self.path)

    def mount_again(self):
        """Once no process uses it."""
        until(self.unmount, UNUSED_SECONDS)
        assert self._run("mount", "-o", "loop", self._image, self.path)

    def unmount(self):
        return self._run("umount", self.path)

    @staticmethod
    def _run(*words):
        return subprocess.run([str(word) for word in words], capture_output=True, check=False).returncode == 0


@contextmanager
def failing_disk(folder):
    disk = FailingDisk(folder)
    disk.make()
    try:
        yield disk
    finally:
        until(disk.unmount, UNUSED_SECONDS)
