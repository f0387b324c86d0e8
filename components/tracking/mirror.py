"""Keeps MLflow up with the journal from a thread of its own: training never waits for a server."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from requests.exceptions import RequestException

from components.tracking.journal import Journal
from components.tracking.runs import SearchRuns
from components.training.records import TrialRecord

log = logging.getLogger(__name__)

MOST_PATIENCE_SECONDS = 10.0


class Mirror:
    """`append` journals a record and returns; the thread delivers it, again and again while the server is away."""

    def __init__(self, journal: Journal, connect: Callable[[], SearchRuns], *, system_metrics: bool = True) -> None:
        self.journal, self._connect = journal, connect
        self._waiting: queue.Queue[TrialRecord | None] = queue.Queue()
        self._system_metrics = system_metrics
        self._give_up = threading.Event()
        for record in journal.read():  # what an earlier driver may not have delivered
            self._waiting.put(record)
        self._thread = threading.Thread(target=self._deliver_all, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def append(self, record: TrialRecord) -> None:
        self.journal.append(record)
        self._waiting.put(record)

    def close(self, patience_seconds: float = 60.0) -> int:
        """Waits until all is delivered, at most so long. Returns how many records are still owed; the journal has them."""
        self._waiting.put(None)
        self._thread.join(patience_seconds)
        self._give_up.set()
        self.journal.close()
        return self._waiting.qsize() + 1 if self._thread.is_alive() else 0

    def _deliver_all(self) -> None:
        runs: SearchRuns | None = None
        monitor: SystemMetricsMonitor | None = None
        while (record := self._waiting.get()) is not None:
            while not self._give_up.is_set():
                try:
                    if runs is None:
                        runs = self._connect()
                        monitor = self._monitor(runs)
                    runs.apply(record)
                    break
                except (MlflowException, RequestException, OSError) as error:
                    log.warning("MLflow is away, its journal waits: %s", str(error).splitlines()[0])
                    time.sleep(MOST_PATIENCE_SECONDS / 5)
        if monitor is not None:
            monitor.finish()

    def _monitor(self, runs: SearchRuns) -> SystemMetricsMonitor | None:
        if not self._system_metrics:
            return None
        monitor = SystemMetricsMonitor(runs.parent_id, resume_logging=True, tracking_uri=runs.client.tracking_uri)
        monitor.start()
        return monitor
