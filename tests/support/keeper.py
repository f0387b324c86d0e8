"""python keeper.py FOLDER COMMAND...: runs the command; when its own standard input closes, ends all that came of it.

The input is a pipe held by whoever started it, so it closes when they close it and also when they are killed. The folder
is removed at the end.
"""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys

import psutil

PR_SET_CHILD_SUBREAPER = 36


def keep(folder: str, *command: str) -> None:
    # What loses its parent becomes a child of this process, so nothing ever leaves the tree below it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    sys.stdin.buffer.read()
    end_all_below(psutil.Process())
    child.wait()
    shutil.rmtree(folder, ignore_errors=True)


def end_all_below(process: psutil.Process) -> None:
    while living := process.children(recursive=True):
        for descendant in living:
            with contextlib.suppress(psutil.NoSuchProcess):
                descendant.kill()
        psutil.wait_procs(living, timeout=1.0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass


if __name__ == "__main__":
    keep(*sys.argv[1:])
