"""From the experiment's sampler to what Tune asks: a parameter space or a searcher, and the scheduler.

Every Tune config is a TrialConfig, whichever sampler made it.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search import SearchAlgorithm

from components.cluster.scheduling.search_algorithms import PresampledSearch, SearcherWithClones
from components.cluster.scheduling.tpe import BranchedTpe
from components.cluster.slots.trial_config import KEY, TrialConfig
from components.experiment.space import sample_trials
from components.experiment.spec import ExperimentSpec


def parameter_space(experiment: ExperimentSpec) -> dict[str, Any]:
    """All trials of a random or grid search, already drawn; nothing for a searcher that draws them one by one."""
    if experiment.search.sampler == "tpe":
        return {}
    configs = [
        TrialConfig(number=number, branch=trial.branch, varied=trial.varied, spec=trial.spec).to_tune()
        for number, trial in enumerate(sample_trials(experiment), start=1)
    ]
    return {KEY: tune.grid_search([config[KEY] for config in configs])}


def search_algorithm(experiment: ExperimentSpec, budget: int, search_id: str) -> SearchAlgorithm:
    """Optuna's TPE, which learns within each branch from what its trials have shown; else all that was drawn, in order.

    `budget` is in target tokens.
    """
    most = experiment.search.max_concurrent_trials
    if experiment.search.sampler != "tpe":
        return PresampledSearch(search_id, most)
    return SearcherWithClones(search_id, BranchedTpe(experiment, budget), most)
