"""The search algorithm that Tune asks for trials: those of the journal, those that people ask for, and the sampler's.

Tune begins from nothing when a search is resumed. So trials that have ended are unknown to it, and those that another driver
had begun come first, under their ids. Then come clones (driver/trial_control.py), then the sampler's next trials. The
algorithm is finished while no trial waits, and unfinished again once a person asks for a clone: Tune asks as long as any
trial runs.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Experiment, Trial
from ray.tune.search import SearchAlgorithm

from components.cluster.driver.trial_control import TrialController, controller_of
from components.cluster.ray_internals.tune import create_trial
from components.cluster.scheduling.numbered_searcher import NumberedSearcher
from components.cluster.slots.slot_result import KEY, SlotResult
from components.cluster.slots.trial_config import TrialConfig


class TrialGenerator(SearchAlgorithm):  # type: ignore[misc]
    """Tune pickles it before it begins: it knows the search's id, and no controller."""

    def __init__(self, search_id: str, searcher: NumberedSearcher) -> None:
        self.search_id, self._searcher = search_id, searcher
        self._experiment: Experiment | None = None
        self._hopeless = False

    def add_configurations(self, experiments: list[Experiment]) -> None:
        """Called by Tune once, with what all trials have in common."""
        (self._experiment,) = experiments
        self._searcher.go_on_after(self._controller.histories)

    @property
    def total_samples(self) -> int:
        return self._controller.planned

    def is_finished(self) -> bool:
        if self._hopeless:
            return True
        controller = self._controller
        new = not controller.is_closed and (controller.has_clones or self._searcher.has_more)
        return not (self._searcher.has_unfinished or new)

    def set_finished(self) -> None:
        """Called by Tune when the stopper ends all trials: no other one can succeed."""
        self._hopeless = True

    def next_trial(self) -> Trial | None:
        controller = self._controller
        if self._searcher.has_unfinished:
            return self._trial(*self._searcher.next_unfinished())
        if controller.is_closed:
            return None
        if (clone := controller.next_clone()) is not None:
            parent, asked = clone
            cloned = TrialConfig.of_clone(parent, asked)
            self._searcher.note_clone(asked.trial_id, cloned)
            return self._trial(asked.trial_id, cloned)
        trial_id = Trial.generate_id()
        config = self._searcher.next_new(trial_id, [asked.spec for _, asked in controller.clones.values()])
        return None if config is None else self._trial(trial_id, config)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """The reports are the journal's, which a resumed search has, too. A trial that starts again has not ended."""
        if trial_id in self._controller.starts_again:
            self._searcher.start_again(trial_id)
            return
        history = self._controller.histories.get(trial_id)
        failed = result is not None and KEY in result and SlotResult.of(result).is_impossible
        self._searcher.end(trial_id, None if history is None else history.reports, impossible=failed)

    @property
    def _controller(self) -> TrialController:
        return controller_of(self.search_id)

    def _trial(self, trial_id: str, config: TrialConfig) -> Trial:
        return create_trial(self._experiment, config.to_tune(), trial_id=trial_id, tag=str(config.number))
