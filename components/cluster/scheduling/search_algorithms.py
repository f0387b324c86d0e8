"""Trials that people ask for (directing.py) come before those that were drawn: from Tune's search algorithms, and to run.

A search algorithm is finished while nothing waits, and not for ever: a clone that is asked for as long as any trial runs
still comes. Drawn trials are drawn, counted and restored as Tune does it; clones are restored from the journal.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm, Searcher
from ray.tune.search.search_generator import SearchGenerator

from components.cluster.driver.trial_control import controller_of
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import Clone


class ClonesFirst(FIFOScheduler):  # type: ignore[misc]
    """Mixed into a scheduler: a place that is free goes to a clone, if one waits."""

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        for trial in tune_controller.get_trials():
            if trial.status == Trial.PENDING and TrialConfig.of(trial).parent is not None:
                return trial
        return super().choose_trial_to_run(tune_controller)


class _HandsOutClones(SearchAlgorithm):  # type: ignore[misc]
    search_id: str

    @property
    @abstractmethod
    def tune_spec(self) -> dict[str, Any]:
        """What Tune makes trials from, whatever their config."""

    def is_finished(self) -> bool:
        return super().is_finished() and not controller_of(self.search_id).has_clones

    def next_trial(self) -> Trial | None:
        asked = controller_of(self.search_id).next_clone()
        return super().next_trial() if asked is None else self._trial(*asked)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if trial_id not in controller_of(self.search_id).clones:
            super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if trial_id not in controller_of(self.search_id).clones:
            super().on_trial_complete(trial_id, result, error)

    def _trial(self, parent: str, clone: Clone) -> Trial:
        config = TrialConfig(
            number=clone.number,
            branch=clone.branch,
            varied=clone.varied,
            spec=clone.spec,
            parent=parent,
            warm_from=clone.warm_from,
        )
        return _create_trial_from_spec(
            {**self.tune_spec, "config": config.to_tune()},
            _make_parser(),
            trial_id=clone.trial_id,
            experiment_tag=f"clone_{clone.number}",
        )


class PresampledSearch(_HandsOutClones, BasicVariantGenerator):  # type: ignore[misc]
    """Random and grid: all trials are known at the start."""

    def __init__(self, search_id: str, max_concurrent: int | None) -> None:
        super().__init__(max_concurrent=max_concurrent or 0)
        self.search_id = search_id

    @property
    def tune_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self._iterators[0].unresolved_spec
        return spec


class SearcherWithClones(_HandsOutClones, SearchGenerator):  # type: ignore[misc]
    """A searcher draws one after another; it hears of its own trials only."""

    def __init__(self, search_id: str, searcher: Searcher, max_concurrent: int | None) -> None:
        super().__init__(ConcurrencyLimiter(searcher, max_concurrent) if max_concurrent else searcher)
        self.search_id = search_id

    @property
    def tune_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self._experiment.spec
        return spec
