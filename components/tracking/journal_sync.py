"""Writes the journal's records to MLflow from a thread of its own, so that training never waits for a server."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from components.records.events import TrialEvent
from components.records.journal import Journal
from components.records.stop_flag import StopRequest
from components.tracking.mlflow_access import MLFLOW_ERRORS, is_final, reason_of
from components.tracking.mlflow_runs import SearchRuns
from components.tracking.record_groups import RecordGroups

log = logging.getLogger(__name__)

RETRY_SECONDS, POLL_SECONDS = 2.0, 0.2
PATIENCE_SECONDS_OF_A_STOP = 5.0


class JournalSync:
    """`append` journals a record and returns. The thread delivers it, and retries while the server is away.

    Records that the journal holds already are delivered first: an earlier driver may not have delivered them. `num_handled`
    counts the records that MLflow has taken or refused, `refused` those that it will never take, e.g. because somebody
    deleted the trial's run; only the journal has these.
    """

    def __init__(self, journal: Journal, connect: Callable[[], SearchRuns], *, system_metrics: bool = True) -> None:
        self.journal, self._connect, self._system_metrics = journal, connect, system_metrics
        self._runs: SearchRuns | None = None
        self._monitor: SystemMetricsMonitor | None = None
        self._queue: queue.Queue[TrialEvent | None] = queue.Queue()
        self._groups = RecordGroups()  # taken from the queue
        self._num_enqueued = self.num_handled = self.refused = 0
        self._away = self._ended = False
        self._give_up = threading.Event()
        for record in journal.read():
            self._enqueue(record)
        self._thread = threading.Thread(target=self._deliver_all, name="journal-sync", daemon=True)
        self._thread.start()

    def append(self, record: TrialEvent) -> None:
        self.journal.append(record)
        self._enqueue(record)

    def close(self, patience_seconds: float = 60.0, stop: StopRequest | None = None) -> int:
        """Waits until all records are delivered, as long as MLflow takes one within this time: a large search and a slow
        server need their time. Returns how many are not delivered; the journal has them.

        A stop request, also one that comes meanwhile, leaves it PATIENCE_SECONDS_OF_A_STOP.
        """
        self._queue.put(None)
        deadline, hurried, handled = time.monotonic() + patience_seconds, False, self.num_handled
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(POLL_SECONDS)
            if self.num_handled > handled and not hurried:
                deadline, handled = time.monotonic() + patience_seconds, self.num_handled
            if stop is not None and stop.reason is not None and not hurried:
                deadline, hurried = min(deadline, time.monotonic() + PATIENCE_SECONDS_OF_A_STOP), True
        self._give_up.set()
        self.journal.close()
        if self.refused:
            log.warning("MLflow refused %d records of %s for good", self.refused, self.journal.place)
        return self._num_enqueued - self.num_handled

    def _enqueue(self, record: TrialEvent) -> None:
        self._num_enqueued += 1
        self._queue.put(record)

    def _deliver_all(self) -> None:
        while self._wait_for_records() and self._deliver(self._groups.take()):
            pass
        if self._monitor is not None and not self._give_up.is_set():
            self._monitor.finish()

    def _wait_for_records(self) -> bool:
        """Takes all that is in the queue. Returns False once it has ended and nothing waits."""
        while not self._ended and (not self._groups or not self._queue.empty()):
            record = self._queue.get()
            if record is None:
                self._ended = True
            else:
                self._groups.add(record)
        return bool(self._groups)

    def _deliver(self, group: list[TrialEvent]) -> bool:
        """Tries until MLflow has the records or refuses them. Returns False if `close` has ended its patience first."""
        while not self._give_up.is_set():
            try:
                self._connect_once().apply_together(group)
            except MLFLOW_ERRORS as error:
                if self._runs is not None and is_final(error):
                    if len(group) > 1:  # each for itself: some may be taken
                        self._runs.forget(group[0].trial_id)
                        return all(self._deliver([record]) for record in group)
                    self._refuse(group[0], error)
                    self.num_handled += 1
                    return True
                self._disconnect(error)
                self._give_up.wait(RETRY_SECONDS)
            else:
                self.num_handled += len(group)
                self._report_return()
                return True
        return False

    def _connect_once(self) -> SearchRuns:
        if self._runs is None:
            self._runs = self._connect()
        if self._system_metrics:
            self._monitor_system(self._runs)
        return self._runs

    def _disconnect(self, error: Exception) -> None:
        """Makes the next try open a new connection, which asks MLflow for what has arrived."""
        self._runs = None
        if not self._away:
            log.warning(
                "MLflow is away (%s); the journal %s keeps what it misses", reason_of(error), self.journal.place
            )
        self._away = True

    def _report_return(self) -> None:
        if self._away:
            log.warning("MLflow is back, and %d records follow", self._num_enqueued - self.num_handled)
        self._away = False

    def _refuse(self, record: TrialEvent, error: Exception) -> None:
        if not self.refused:
            log.warning("MLflow refuses a record of trial %s for good: %s", record.trial_id, reason_of(error))
        self.refused += 1

    def _monitor_system(self, runs: SearchRuns) -> None:
        """Writes system metrics of this machine to the search's run. MLflow's monitor ends itself at its first error."""
        if self._monitor is not None and self._monitor._process.is_alive():
            return
        self._monitor = SystemMetricsMonitor(runs.parent_id, resume_logging=True, tracking_uri=runs.client.tracking_uri)
        self._monitor.start()
