"""Runs a search as people start it, kills one of its workers, and writes down what can be seen of it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from components.records.events import TrialEvent, TrialProgressed, TrialStarted
from components.records.journal import JOURNAL, Journal
from components.storage.open_folder import folder_at

ROOT = Path(__file__).resolve().parents[3]
TRAIN_WORKER = "RayTrainWorker"  # a part of the name that Ray gives the process
JOURNAL_SECONDS, LOOK_SECONDS = 0.05, 0.25
GRACE_SECONDS = (
    8.0  # from SIGTERM, after which a search writes checkpoints and ends, to SIGKILL; then for what it started
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """`workers` are process ids of Ray Train workers; `used_bytes` what all processes hold of the card (None: no card)."""

    time: float
    workers: frozenset[int]
    used_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    pid: int
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """`status` is the program's, None if it was ended at its time limit; `summary` what --json printed, if it did."""

    status: int | None
    summary: Mapping[str, Any] | None
    last_words: str
    events: tuple[TrialEvent, ...]
    looks: tuple[Look, ...]
    kill: Kill | None
    left: int = 0  # processes that had to be ended after it


@dataclass(slots=True)
class _Watch:
    """All that is seen while the program runs. The first worker of a full trial is killed after the trial's first report."""

    program: psutil.Process
    storage: Path
    used_bytes: Callable[[], int] | None
    events: list[TrialEvent] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    kill: Kill | None = None
    journal: Journal | None = None
    started: set[psutil.Process] = field(default_factory=set)

    def read_journal(self) -> None:
        if self.journal is None:
            found = list(self.storage.glob(f"*/*/{JOURNAL}"))
            self.journal = Journal(folder_at(found[0].parent)) if found else None
        if self.journal is not None:
            self.events += self.journal.read(after=len(self.events))

    def look(self) -> None:
        self.started |= set(descendants(self.program))
        workers = frozenset(worker.pid for worker in train_workers(self.program))
        used = None if self.used_bytes is None else self.used_bytes()
        self.looks.append(Look(time=time.time(), workers=workers, used_bytes=used))

    def kill_once(self) -> None:
        if self.kill is not None or not kill_is_due(self.events):
            return
        victim = max(train_workers(self.program), key=lambda worker: worker.create_time(), default=None)
        if victim is not None:
            victim.send_signal(signal.SIGKILL)
            self.kill = Kill(pid=victim.pid, time=time.time())


def record(
    command: Sequence[str],
    *,
    storage: Path,
    environment: Mapping[str, str],
    logs: Path,
    seconds: float,
    used_bytes: Callable[[], int] | None = None,
) -> Recording:
    """Runs `command`, at most so long. Nothing of it is left running.

    Args:
        storage: where its experiment's folder will be.
        logs: a folder for what it prints, which is printed here, too, once it has ended.
        used_bytes: asks how much memory of the card is in use.
    """
    ends = time.monotonic() + seconds
    said, errors = logs / "search.json", logs / "search.log"
    with said.open("w", encoding="utf-8") as out, errors.open("w", encoding="utf-8") as err:
        program = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=out, stderr=err
        )
    watch = _Watch(psutil.Process(program.pid), storage, used_bytes)
    try:
        while program.poll() is None and time.monotonic() < ends:
            watch.read_journal()
            watch.kill_once()
            if not watch.looks or time.time() - watch.looks[-1].time > LOOK_SECONDS:
                watch.look()
            time.sleep(JOURNAL_SECONDS)
        status = program.poll()
    finally:
        watch.look()
        left = end(program, watch.started)
    watch.read_journal()
    watch.look()
    print(errors.read_text(encoding="utf-8"), flush=True)
    lines = said.read_text(encoding="utf-8").splitlines()
    return Recording(
        status=status,
        summary=json.loads(lines[-1]) if lines and status is not None else None,
        last_words=" ".join(errors.read_text(encoding="utf-8").split())[-300:],
        events=tuple(watch.events),
        looks=tuple(watch.looks),
        kill=watch.kill,
        left=left,
    )


def kill_is_due(events: Sequence[TrialEvent]) -> bool:
    """Once a full trial has reported and goes on: it has the card alone, and something to lose."""
    full = {event.trial_id for event in events if isinstance(event, TrialStarted) and event.spec.method.kind == "full"}
    return any(
        isinstance(event, TrialProgressed) and event.trial_id in full and not event.progress.done for event in events
    )


def train_workers(program: psutil.Process) -> list[psutil.Process]:
    """The Ray Train workers among a program's descendants; those of other searches are not."""
    return [child for child in descendants(program) if any(TRAIN_WORKER in word for word in words_of(child))]


def descendants(program: psutil.Process) -> list[psutil.Process]:
    try:
        return program.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def words_of(process: psutil.Process) -> list[str]:
    """Its command line; none if it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def end(program: subprocess.Popen[bytes], started: Iterable[psutil.Process]) -> int:
    """Ends a program and what it started, each process by its own id. Returns how many did not end with it."""
    if program.poll() is None:
        program.terminate()
        try:
            program.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
    left = _still_running(started)
    for process in left:
        process.kill()  # psutil kills no other process that has got the id since
    _still_running(left)
    return len(left)


def _still_running(processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those that have not ended in GRACE_SECONDS."""
    deadline, running = time.monotonic() + GRACE_SECONDS, [process for process in processes if runs(process)]
    while running and time.monotonic() < deadline:
        time.sleep(JOURNAL_SECONDS)
        running = [process for process in running if runs(process)]
    return running


def runs(process: psutil.Process) -> bool:
    """False for a dead one whose parent has not asked yet how it ended: in a container perhaps none ever does."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
