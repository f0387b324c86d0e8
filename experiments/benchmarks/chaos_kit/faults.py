"""What befalls a search: each fault finds its victim among the processes that the search's driver has started."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from enum import StrEnum
from functools import partial
from pathlib import Path

import psutil

from tests.support.servers import Server

VICTIM_SECONDS = 60.0  # how long a fault waits for a victim: after the fault before, some have yet to start again


class Fault(StrEnum):
    WORKER = "worker killed"
    WORKER_STOPPED = "worker stopped for some seconds"
    CONTROLLER = "Train controller killed"
    SLOT = "slot killed"
    BOARD = "command board killed"
    NODE = "node (raylet) killed"
    HEAD = "control store of Ray killed"
    DRIVER = "driver killed"
    DRIVER_AT_END = "driver killed after the last trial"
    TRACKING = "MLflow server killed, back after some seconds"
    DISK_FULL = "disk full for some seconds"
    STORE_STOPPED = "S3 server stopped for some seconds"


# Words of a victim's command line. Ray names a process by its actor's class.
TITLES = {
    Fault.WORKER: "RayTrainWorker",
    Fault.WORKER_STOPPED: "RayTrainWorker",
    Fault.CONTROLLER: "TrainController",
    Fault.SLOT: "ResourceTrainable",  # Tune's name for a class with resources
    Fault.BOARD: "Board",
    Fault.NODE: "raylet/raylet",
    Fault.HEAD: "gcs_server",
}
OUTAGE_SECONDS = (2.0, 8.0)  # of what comes back by itself


class Faults:
    """Carries faults out, with a generator of its own: the same seed, the same outages and choices among victims."""

    def __init__(self, seed: int, server: Server, disk: Path | None = None, store: Server | None = None) -> None:
        """`disk`: a small file system of its own, with the search's storage in it, that may be filled. `store`: the S3
        server that the storage lies on instead; it keeps everything in memory, so that it is stopped and not killed."""
        self._random, self._server, self._disk, self._store = random.Random(seed), server, disk, store
        self._outages: list[threading.Thread] = []

    def strike(self, fault: Fault, driver: psutil.Process) -> bool:
        """Returns False if there was no victim: the search has ended."""
        match fault:
            case Fault.DRIVER | Fault.DRIVER_AT_END:
                driver.kill()
            case Fault.TRACKING:
                self._server.kill()
                self._later(self._server.start)
            case Fault.DISK_FULL:
                assert self._disk is not None
                ballast = self._disk / "ballast"
                _fill(ballast)
                self._later(ballast.unlink)
            case Fault.STORE_STOPPED:
                assert self._store is not None
                self._stop(psutil.Process(self._store.process.pid))
            case _:
                victim = self._victim(TITLES[fault], driver)
                if victim is None:
                    return False
                if fault is Fault.WORKER_STOPPED:
                    self._stop(victim)
                else:
                    victim.kill()
        return True

    def wait(self) -> None:
        """Returns once every outage is over."""
        while self._outages:
            self._outages.pop().join()

    def _stop(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGSTOP)
        self._later(partial(_go_on, process))

    def _later(self, work: Callable[[], object]) -> None:
        seconds = self._random.uniform(*OUTAGE_SECONDS)

        def over() -> None:
            time.sleep(seconds)
            work()

        self._outages.append(threading.Thread(target=over))
        self._outages[-1].start()

    def _victim(self, title: str, driver: psutil.Process) -> psutil.Process | None:
        deadline = time.monotonic() + VICTIM_SECONDS
        while time.monotonic() < deadline and driver.is_running():
            if found := sorted(_named(title, driver), key=lambda process: process.pid):
                return self._random.choice(found)
            time.sleep(0.1)
        return None


def started_by(driver: psutil.Process) -> list[psutil.Process]:
    """Returns all processes below it, Ray's own included; none once it is gone."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return driver.children(recursive=True)
    return []


def _named(title: str, driver: psutil.Process) -> Iterator[psutil.Process]:
    for process in started_by(driver):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any(title in word for word in process.cmdline()):
                yield process


def _go_on(process: psutil.Process) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGCONT)


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        block = bytes(1 << 16)
        while True:
            file.write(block)
