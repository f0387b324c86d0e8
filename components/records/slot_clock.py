"""How long trials hold slots, between their reports: what the driver's clock says, in worker-seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from components.experiment.spec import TrialSpec
from components.records.events import TrialHistory, TrialState


@dataclass(slots=True)
class _Held:
    workers: float  # less than one where trials share it
    since: float | None  # None: it holds no slot now
    before: float = 0.0  # worker-seconds that no event has yet


class SlotClock:
    """One per driver. `clock` gives seconds that only grow."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._held: dict[str, _Held] = {}

    def starts(self, trial_id: str, workers: float) -> None:
        """A trial has got a slot; the one it had is gone."""
        before = self.held(trial_id)
        self._held[trial_id] = _Held(workers=workers, since=self._clock(), before=before)

    def leaves(self, trial_id: str) -> None:
        """A trial waits for another slot."""
        if trial_id in self._held:
            held = self.held(trial_id)
            self._held[trial_id] = _Held(workers=self._held[trial_id].workers, since=None, before=held)

    def take(self, trial_id: str, *, ends: bool = False) -> float:
        """Returns what a trial has held since the last call, for the event that is about it."""
        held, known = self.held(trial_id), self._held.pop(trial_id, None)
        if known is not None and not ends:
            self._held[trial_id] = _Held(known.workers, None if known.since is None else self._clock())
        return held

    def held(self, trial_id: str) -> float:
        """Returns what no event has yet, of one trial."""
        known = self._held.get(trial_id)
        if known is None:
            return 0.0
        return known.before + (0.0 if known.since is None else (self._clock() - known.since) * known.workers)

    @property
    def at_work(self) -> dict[str, float]:
        """The workers of every trial that holds a slot now."""
        return {trial_id: held.workers for trial_id, held in self._held.items() if held.since is not None}

    def resume(
        self, histories: list[TrialHistory], last_sign: float, trials_at_once: Callable[[TrialSpec], int] = lambda _: 1
    ) -> None:
        """Counts what the driver before this one did not live to record: from a trial's last event to its last sign.

        Args:
            last_sign: that driver's, in Unix seconds: its heartbeat is at most ten seconds old when it dies.
            trials_at_once: how many share the workers of such a trial.
        """
        for history in histories:
            if history.state is TrialState.RUNNING:
                workers = history.last.workers if history.last else history.started.workers
                share = workers / trials_at_once(history.started.spec)
                lost = max(0.0, last_sign - history.heard_at) * share
                self._held[history.trial_id] = _Held(workers=share, since=None, before=lost)
