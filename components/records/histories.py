"""The state of every trial of one search, made from its events: the only place that holds it.

The journal, the MLflow sync, the live view, the gauges and the checkpoint retention subscribe to the events.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping

from components.records.events import (
    Stop,
    TrialEnded,
    TrialEvent,
    TrialHistory,
    TrialInstructed,
    TrialProgressed,
    apply_event,
    num_clones,
)

Subscriber = Callable[[TrialEvent], None]


class TrialHistories(Mapping[str, TrialHistory]):
    """Trial id -> history, in order of first start. One thread records events; any thread may read.

    Args:
        events: what is already known, e.g. the journal of a search that is resumed. Subscribers do not get these.
    """

    def __init__(self, events: Iterable[TrialEvent] = ()) -> None:
        self._histories: dict[str, TrialHistory] = {}
        self._count = 0
        self._reported: dict[tuple[str, int], int] = {}  # trial and step -> which event it first came with
        self._stopped: dict[str, int] = {}  # trial -> which event is the request for its end
        self._ended: dict[str, None] = {}
        self._subscribers: list[Subscriber] = []
        self.error: Exception | None = None  # the first one that a subscriber raised
        for event in events:
            self._apply(event)

    def subscribe(self, subscriber: Subscriber) -> None:
        """Subscribers are called in the order of their subscription; the journal is the first."""
        self._subscribers.append(subscriber)

    @contextlib.contextmanager
    def subscribed(self, *subscribers: Subscriber) -> Iterator[None]:
        """Inside, these are subscribers too."""
        before = list(self._subscribers)
        self._subscribers.extend(subscribers)
        try:
            yield
        finally:
            self._subscribers = before

    def record(self, event: TrialEvent) -> TrialHistory:
        """Updates the trial, calls every subscriber, and returns the trial's new state.

        Raises ValueError, before any subscriber is called, for an event of a trial that never started; and what a subscriber
        raises, which `error` keeps: Tune makes a text of what its callbacks raise.
        """
        history = self._apply(event)
        try:
            for subscriber in self._subscribers:
                subscriber(event)
        except Exception as error:
            self.error = self.error or error
            raise
        return history

    @property
    def num_clones(self) -> int:
        return num_clones(self.values())

    @property
    def ends(self) -> tuple[str, ...]:
        """The ids of the trials that have ended, in the order of their first ends."""
        return tuple(self._ended)

    def before(self, trial_id: str, step: int) -> dict[str, TrialHistory]:
        """Returns the trials with the reports that were known when a trial first reported this step, and was judged."""
        moment = self._reported[trial_id, step]
        known = {}
        for name, history in self._histories.items():
            reports = tuple(report for report in history.reports if self._reported[name, report.step] < moment)
            known[name] = history.model_copy(update={"reports": reports})
        return known

    def has_reported_since_its_stop(self, trial_id: str) -> bool:
        """Whether a trial that was to end with its next report has made that report."""
        last = self._histories[trial_id].last
        stopped = self._stopped.get(trial_id)
        return last is not None and stopped is not None and self._reported[trial_id, last.step] > stopped

    def __getitem__(self, trial_id: str) -> TrialHistory:
        return self._histories[trial_id]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._histories))  # a copy: a live view reads in a thread of its own while trials start

    def __len__(self) -> int:
        return len(self._histories)

    def _apply(self, event: TrialEvent) -> TrialHistory:
        history = apply_event(self._histories.get(event.trial_id), event)
        self._histories[event.trial_id] = history
        self._note_order(event)
        return history

    def _note_order(self, event: TrialEvent) -> None:
        self._count += 1
        match event:
            case TrialProgressed(trial_id=trial_id, progress=progress):
                self._reported.setdefault((trial_id, progress.step), self._count)
            case TrialInstructed(trial_id=trial_id, instruction=Stop()):
                self._stopped.setdefault(trial_id, self._count)
            case TrialEnded(trial_id=trial_id):
                self._ended.setdefault(trial_id)
