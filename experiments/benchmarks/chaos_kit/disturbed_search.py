"""One search, begun again by the same command whenever its driver has died, with a list of faults on the way."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from components.experiment.load_experiment import load_experiment
from components.records.events import TrialEnded, TrialEvent, TrialProgressed, TrialState, replay
from components.records.journal import Journal
from components.records.manifest import SearchManifest, searches_in
from components.storage.folder import Folder
from experiments.benchmarks.chaos_kit.faults import Fault, Faults, started_by
from experiments.benchmarks.chaos_kit.silence import reports_by_trial, seconds_lost
from tests.support.programs import command, environment

POLL_SECONDS = 0.1
REPORTS_AGAIN = 3  # of each trial, after a fault has settled
MAX_DRIVERS = 5  # in a row that end without a new report: then the search does not go on


@dataclass(frozen=True)
class Struck:
    """A fault that has been carried out, and the seconds that it cost the trial that lost most; None if none ran."""

    fault: Fault
    seconds: float | None


@dataclass
class Disturbed:
    """What a search came to, and what befell it."""

    summary: dict[str, Any]
    folder: Folder
    struck: list[Struck] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)  # of all its drivers
    left_running: list[str] = field(default_factory=list)  # processes of its drivers that outlived the last one


class DisturbedSearch:
    """Runs EXPERIMENT.yaml of a folder."""

    def __init__(
        self, place: Path, experiment: str, faults: Faults, *, seed: int, seconds: float, settles: float
    ) -> None:
        """In seconds: after how many the whole search ends with an error, and how long a fault may not be felt yet."""
        self._place, self._experiment, self._faults = place, experiment, faults
        self._random, self._deadline = random.Random(seed), time.monotonic() + seconds
        self._settles = settles
        self._driver: subprocess.Popen[bytes] | None = None
        self._processes: dict[int, psutil.Process] = {}
        self._statuses: list[int] = []
        self._heard_at_ends: list[int] = []  # how many events there were when each of the last drivers ended
        self._ended = False
        self._storage = load_experiment(place / f"{experiment}.yaml", []).folder

    def run(self, faults: Sequence[Fault] = ()) -> Disturbed:
        """Returns once the search has ended by itself, with all faults behind it for which there was still a victim."""
        struck = []
        try:
            self._start()
            for fault in faults:
                if not self._wait_for_turn(fault):
                    continue
                running, at = self._running(), time.time()
                if self._faults.strike(fault, self._process()):
                    self._wait_for_recovery(running, at)
                    seconds = seconds_lost(self._events(), running, at) if running else None
                    struck.append(Struck(fault, seconds))
            self._faults.wait()
            self._wait_for_end()
        finally:
            self._faults.wait()
            self._end_driver()
        return Disturbed(self._summary(), self._folder(), struck, self._statuses, self._left_running())

    def _start(self) -> None:
        output = (self._place / "output.json").open("wb"), (self._place / "errors.log").open("ab")
        with output[0] as said, output[1] as errors:
            self._driver = subprocess.Popen(
                command("tune", f"{self._experiment}.yaml", "--json"),
                cwd=self._place,
                env=environment(),
                stdout=said,
                stderr=errors,
                start_new_session=True,
            )

    def _process(self) -> psutil.Process:
        assert self._driver is not None
        return psutil.Process(self._driver.pid)

    def _has_ended(self) -> bool:
        """Whether the search has ended by itself. A driver that has died is started again."""
        assert self._driver is not None
        if self._ended:
            return True
        if time.monotonic() > self._deadline:
            raise TimeoutError(f"the search did not end in time; see {self._place / 'errors.log'}")
        status = self._driver.poll()
        if status is None:
            for process in started_by(self._process()):
                self._processes[process.pid] = process
            return False
        self._statuses.append(status)
        manifest = self._manifest()
        if manifest is not None and manifest.finished:
            self._ended = True
            return True
        self._heard_at_ends = [*self._heard_at_ends, len(self._events())][-MAX_DRIVERS:]
        if len(self._heard_at_ends) == MAX_DRIVERS and len(set(self._heard_at_ends)) == 1:
            raise RuntimeError(f"the search does not go on: {self._statuses}; see {self._place / 'errors.log'}")
        self._start()
        return False

    def _wait_for_turn(self, fault: Fault) -> bool:
        """Until trials run and one has reported since the last fault; at the end, until none runs. False if it has ended."""
        heard = len(self._events())
        while not self._has_ended():
            events = self._events()
            ended = self._all_ended(events)
            if fault is Fault.DRIVER_AT_END and ended:
                time.sleep(self._random.uniform(0.0, 3.0))
                return True
            reported = any(isinstance(event, TrialProgressed) for event in events[heard:])
            if fault is not Fault.DRIVER_AT_END and not ended and reported and self._running():
                time.sleep(self._random.uniform(0.0, 1.0))
                return True
            time.sleep(POLL_SECONDS)
        return False

    def _wait_for_recovery(self, running: set[str], at: float) -> None:
        """Until each of these trials has ended, or reported REPORTS_AGAIN times after it may have felt the fault."""
        while not self._has_ended():
            later = [event for event in self._events() if event.time > at]
            ended = {event.trial_id for event in later if isinstance(event, TrialEnded)}
            settled = reports_by_trial(event for event in later if event.time > at + self._settles)
            if all(trial_id in ended or len(settled.get(trial_id, ())) >= REPORTS_AGAIN for trial_id in running):
                return
            time.sleep(POLL_SECONDS)

    def _wait_for_end(self) -> None:
        while not self._has_ended():
            time.sleep(POLL_SECONDS)

    def _running(self) -> set[str]:
        histories = replay(self._events())
        return {trial_id for trial_id, history in histories.items() if history.state is TrialState.RUNNING}

    def _all_ended(self, events: Sequence[TrialEvent]) -> bool:
        manifest = self._manifest()
        if manifest is None:
            return False
        histories = replay(events).values()
        return len(histories) == manifest.experiment.search.trials and all(
            history.state is not TrialState.RUNNING for history in histories
        )

    def _events(self) -> list[TrialEvent]:
        manifest = self._manifest()
        return [] if manifest is None else Journal(self._storage / manifest.search_id).read()

    def _manifest(self) -> SearchManifest | None:
        found = searches_in(self._storage)
        assert len(found) <= 1, "a second search has begun"
        return found[0] if found else None

    def _folder(self) -> Folder:
        manifest = self._manifest()
        assert manifest is not None
        return self._storage / manifest.search_id

    def _summary(self) -> dict[str, Any]:
        return dict(json.loads((self._place / "output.json").read_text(encoding="utf-8")))

    def _end_driver(self) -> None:
        assert self._driver is not None
        if self._driver.poll() is None:
            self._driver.kill()
            self._driver.wait()

    def _left_running(self, seconds: float = 30.0) -> list[str]:
        """Processes of any driver that outlive the last one by so much: they are ended, and named."""
        _, alive = psutil.wait_procs(list(self._processes.values()), timeout=seconds)
        names = []
        for process in alive:
            try:
                if process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid():
                    continue
                names.append(" ".join(process.cmdline()) or process.name())
                process.kill()
            except psutil.NoSuchProcess:
                continue
        return names
