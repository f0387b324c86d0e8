"""Keeps MLflow up with the journal from a thread of its own: training never waits for a server."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from components.records.events import TrialEvent
from components.records.journal import Journal
from components.tracking.mlflow_client import MLFLOW_ERRORS, is_final, reason_of
from components.tracking.mlflow_runs import SearchRuns

log = logging.getLogger(__name__)

RETRY_SECONDS = 2.0


class JournalSync:
    """`append` journals a record and returns; the thread delivers it, again and again while the server is away.

    What the journal holds already is delivered first: an earlier driver may not have come to it. `refused` counts the
    records that MLflow will never take, e.g. because somebody deleted the trial's run; they are in the journal only.
    """

    def __init__(self, journal: Journal, connect: Callable[[], SearchRuns], *, system_metrics: bool = True) -> None:
        self.journal, self._connect, self._system_metrics = journal, connect, system_metrics
        self._runs: SearchRuns | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._waiting: queue.Queue[TrialEvent | None] = queue.Queue()
        self._told = self._settled = self.refused = 0
        self._away = False
        self._give_up = threading.Event()
        for record in journal.read():
            self._tell(record)
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def append(self, record: TrialEvent) -> None:
        self.journal.append(record)
        self._tell(record)

    def close(self, patience_seconds: float = 60.0) -> int:
        """Waits until all is delivered, at most so long. Returns how many records are still owed; the journal has them."""
        self._waiting.put(None)
        self._thread.join(patience_seconds)
        self._give_up.set()
        self.journal.close()
        if self.refused:
            log.warning("MLflow refused %d records of %s for good", self.refused, self.journal.place)
        return self._told - self._settled

    def _tell(self, record: TrialEvent) -> None:
        self._told += 1
        self._waiting.put(record)

    def _deliver_all(self) -> None:
        while (record := self._waiting.get()) is not None and self._deliver(record):
            self._settled += 1
        if self._monitor is not None and not self._give_up.is_set():
            self._monitor.finish()

    def _deliver(self, record: TrialEvent) -> bool:
        """Tries until MLflow has the record or refuses it. False if there is no more time to try."""
        while not self._give_up.is_set():
            try:
                self._connected().apply(record)
            except MLFLOW_ERRORS as error:
                if self._runs is not None and is_final(error):
                    self._refuse(record, error)
                    return True
                self._lose(error)
                self._give_up.wait(RETRY_SECONDS)
            else:
                self._find()
                return True
        return False

    def _connected(self) -> SearchRuns:
        if self._runs is None:
            self._runs = self._connect()
        if self._system_metrics:
            self._watch(self._runs)
        return self._runs

    def _lose(self, error: Exception) -> None:
        """The next try connects anew: only MLflow knows what of this one has arrived."""
        self._runs = None
        if not self._away:
            log.warning(
                "MLflow is away (%s); the journal %s keeps what it misses", reason_of(error), self.journal.place
            )
        self._away = True

    def _find(self) -> None:
        if self._away:
            log.warning("MLflow is back, and %d records follow", self._told - self._settled - 1)
        self._away = False

    def _refuse(self, record: TrialEvent, error: Exception) -> None:
        if not self.refused:
            log.warning("MLflow refuses a record of trial %s for good: %s", record.trial_id, reason_of(error))
        self.refused += 1

    def _watch(self, runs: SearchRuns) -> None:
        """System metrics of this machine, on the search's run. MLflow's monitor ends itself at the first error it meets."""
        if self._monitor is not None and self._monitor._process.is_alive():
            return
        self._monitor = SystemMetricsMonitor(runs.parent_id, resume_logging=True, tracking_uri=runs.client.tracking_uri)
        self._monitor.start()
