"""Tune's search algorithms, which also hand out clones: the trials that people ask for (driver/trial_control.py).

A clone is handed out before the next trial of the sampler. An algorithm is finished while no clone waits, and unfinished
again once a person asks for one: Tune asks as long as any trial runs. The sampler's trials are made, counted and restored
as Tune does it; clones are restored from the journal.
"""

from __future__ import annotations

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.search import BasicVariantGenerator, ConcurrencyLimiter, SearchAlgorithm
from ray.tune.search.search_generator import SearchGenerator

from components.cluster.driver.trial_control import controller_of
from components.cluster.ray_internals.tune import create_trial
from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import Clone


class _HandsOutClones(SearchAlgorithm):  # type: ignore[misc]
    """Mixed into an algorithm of Tune, which never hears of clones."""

    search_id: str

    def is_finished(self) -> bool:
        controller = controller_of(self.search_id)
        return controller.is_closed or (super().is_finished() and not controller.has_clones)

    def next_trial(self) -> Trial | None:
        if controller_of(self.search_id).is_closed:
            return None
        clone = controller_of(self.search_id).next_clone()
        return super().next_trial() if clone is None else self._trial(*clone)

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
            repeat=clone.repeat,
        )
        return create_trial(self, config.to_tune(), trial_id=clone.trial_id, tag=f"clone_{clone.number}")


class PresampledSearch(_HandsOutClones, BasicVariantGenerator):  # type: ignore[misc]
    """Random and grid: all trials are known at the start."""

    def __init__(self, search_id: str, max_concurrent: int | None) -> None:
        super().__init__(max_concurrent=max_concurrent or 0)
        self.search_id = search_id


class SearcherWithClones(_HandsOutClones, SearchGenerator):  # type: ignore[misc]
    """A searcher makes trials one after another, and hears of these only; it suggests no configuration of a clone."""

    def __init__(self, search_id: str, searcher: BranchedSearcher, max_concurrent: int | None) -> None:
        super().__init__(ConcurrencyLimiter(searcher, max_concurrent) if max_concurrent else searcher)
        self.search_id, self._branched = search_id, searcher

    def next_trial(self) -> Trial | None:
        self._branched.avoid(clone.spec for _, clone in controller_of(self.search_id).clones.values())
        return super().next_trial()
