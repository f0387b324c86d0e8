"""Processes of their own for what needs them: a process group, or settings that a process reads once. None is left behind."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Self

from experiments.benchmarks.gpu_kit.checks import Check, append, failed, read
from experiments.benchmarks.gpu_kit.part_process import line_of
from experiments.benchmarks.gpu_kit.settings import Settings

IMPORTS = 15.0  # seconds, about, from the start of a process until its work begins
PATIENCE = 5.0  # seconds that the others get to end by themselves once one has failed: they may wait for it
CHECKS_FILE = "checks.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """One of `count` processes that work together; `folder` is theirs alone."""

    rank: int
    count: int
    folder: Path


# Every process makes the same checks; those of the first one count.
Work = Callable[..., Iterator[Check]]


class Children:
    """Processes that run work(Child, *arguments), from entering the context until it is left."""

    def __init__(self, work: Work, *arguments: Any, count: int, settings: Settings, seconds: float) -> None:
        self.work, self.arguments, self.count, self.seconds = work, arguments, count, seconds
        self.folder = Path(tempfile.mkdtemp(prefix="children-", dir=settings.scratch))
        self.processes: list[BaseProcess] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self.deadline = time.monotonic() + self.seconds
        for rank in range(self.count):
            child = Child(rank=rank, count=self.count, folder=self.folder)
            entry = (self.work, child, self.arguments, self.seconds)
            self.processes.append(context.Process(target=_enter, args=entry, daemon=True))
            self.processes[-1].start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def checks(self, asked: str) -> Iterator[Check]:
        """Yields the checks as they are made. `asked` is what fails if a process ends by an error or is not over in time."""
        told, running, deadline = 0, True, self.deadline
        while running and time.monotonic() < deadline:
            time.sleep(0.1)
            running = any(process.is_alive() for process in self.processes)
            made = read(self.folder / CHECKS_FILE)
            yield from made[told:]
            told = len(made)
            if self._has_failed():
                deadline = min(deadline, time.monotonic() + PATIENCE)
        if self._has_failed():
            yield failed(asked, self._reason())
        elif running:
            yield failed(asked, f"not over after {self.seconds:.0f} s, and ended")

    def _has_failed(self) -> bool:
        return any(process.exitcode for process in self.processes)

    def _reason(self) -> str:
        reasons = {file.read_text(encoding="utf-8"): None for file in sorted(self.folder.glob("error_*"))}
        return "; ".join(reasons) or f"the processes ended with {[process.exitcode for process in self.processes]}"


def _enter(work: Work, child: Child, arguments: tuple[Any, ...], seconds: float) -> None:
    # No connection leaves this machine, and none depends on what its name resolves to.
    os.environ.update(GLOO_SOCKET_IFNAME="lo", NCCL_SOCKET_IFNAME="lo")
    # Who waits for a collective says so in the log before the time is over.
    faulthandler.dump_traceback_later(max(1.0, seconds - IMPORTS), file=2)
    try:
        for check in work(child, *arguments):
            if child.rank == 0:
                append(child.folder / CHECKS_FILE, check)
    except BaseException as error:
        (child.folder / f"error_{child.rank}").write_text(line_of(error), encoding="utf-8")
        raise
