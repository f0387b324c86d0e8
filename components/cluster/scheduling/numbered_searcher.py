"""Gives out the trials of a search: first those that the journal left unfinished, by their numbers, then new ones.

Of Tune it knows nothing. The trials come from a sampler: one that draws from results, or one that has drawn them all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from components.cluster.slots.trial_config import TrialConfig
from components.experiment.draw_trials import sample_trials
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.records.events import Progress
from components.records.histories import TrialHistories
from components.records.unfinished_trials import trials_to_go_on


class Sampler(Protocol):
    """Draws the trials 1, 2, ... of a search."""

    @property
    def has_more(self) -> bool:
        """Whether there is a trial that has not been drawn."""
        ...

    def draw(self) -> TrialConfig:
        """Returns the trial of the next number."""
        ...

    def end(self, number: int, reports: Iterable[Progress] | None, *, impossible: bool) -> None:
        """Tells of a trial's end. `reports`: None if it has not begun. `impossible`: it failed by its configuration."""
        ...

    def avoid(self, specs: Iterable[TrialSpec]) -> None:
        """Keeps these configurations from being drawn."""
        ...

    def go_on_after(self, histories: TrialHistories) -> list[TrialConfig]:
        """Takes up the draws and ends of the journal. Returns the trials among them that have not begun."""
        ...


class PresampledTrials:
    """Random and grid: all trials are known at the start, and no result changes them."""

    def __init__(self, experiment: ExperimentSpec) -> None:
        self._left = deque(
            TrialConfig(number=number, branch=trial.branch, varied=dict(trial.varied), spec=trial.spec)
            for number, trial in enumerate(sample_trials(experiment), start=1)
        )

    @property
    def has_more(self) -> bool:
        return bool(self._left)

    def draw(self) -> TrialConfig:
        return self._left.popleft()

    def end(self, number: int, reports: Iterable[Progress] | None, *, impossible: bool) -> None:
        """Nothing follows from it."""

    def avoid(self, specs: Iterable[TrialSpec]) -> None:
        """A clone is compared with these trials before it is accepted (driver/equal_trials.py)."""

    def go_on_after(self, histories: TrialHistories) -> list[TrialConfig]:
        begun = {history.started.number for history in histories.values()}
        self._left = deque(trial for trial in self._left if trial.number not in begun)
        return []


class NumberedSearcher:
    """Hands out each trial once. `planned` is how many the sampler makes."""

    def __init__(self, sampler: Sampler, planned: int, max_at_once: int | None = None) -> None:
        self._sampler, self._planned, self._max_at_once = sampler, planned, max_at_once
        self._unfinished: deque[tuple[str, TrialConfig]] = deque()
        self._once_more: deque[TrialConfig] = deque()
        self._at_work: dict[str, TrialConfig] = {}  # by trial id

    def go_on_after(self, histories: TrialHistories) -> None:
        """Takes up what the journal has; called once, before the first trial."""
        self._once_more.extend(self._sampler.go_on_after(histories))
        for history in trials_to_go_on(histories.values(), self._planned):
            self._unfinished.append((history.trial_id, TrialConfig.of_started(history.started)))

    @property
    def has_unfinished(self) -> bool:
        """Whether a trial waits that an earlier driver had begun."""
        return bool(self._unfinished)

    @property
    def has_more(self) -> bool:
        """Whether a trial waits that has not begun."""
        return bool(self._once_more) or self._sampler.has_more

    def next_unfinished(self) -> tuple[str, TrialConfig]:
        """Returns id and configuration. `search.max_concurrent_trials` had let it begin."""
        trial_id, config = self._unfinished.popleft()
        self._at_work[trial_id] = config
        return trial_id, config

    def note_clone(self, trial_id: str, config: TrialConfig) -> None:
        """A person asked for this trial, and it is handed out."""
        self._at_work[trial_id] = config

    def next_new(self, trial_id: str, clones: Iterable[TrialSpec]) -> TrialConfig | None:
        """Returns the next trial, unlike these clones; None while as many are at work as may be, or if there is none."""
        at_work = sum(config.parent is None for config in self._at_work.values())
        if not self.has_more or (self._max_at_once and at_work >= self._max_at_once):
            return None
        self._sampler.avoid(clones)
        config = self._once_more.popleft() if self._once_more else self._sampler.draw()
        self._at_work[trial_id] = config
        return config

    def end(self, trial_id: str, reports: Iterable[Progress] | None, *, impossible: bool) -> None:
        """Does nothing for a clone: the sampler has not drawn it."""
        config = self._at_work.pop(trial_id, None)
        if config is not None and config.parent is None:
            self._sampler.end(config.number, reports, impossible=impossible)

    def start_again(self, trial_id: str) -> None:
        """Hands a trial out once more: its slot was lost before it could train."""
        self._unfinished.append((trial_id, self._at_work.pop(trial_id)))
