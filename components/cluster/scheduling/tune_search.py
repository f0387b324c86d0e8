"""Translates the experiment's sampler for Tune: into a parameter space, or into a searcher.

Every Tune config is a TrialConfig, whichever sampler made it.
"""

from __future__ import annotations

from typing import Any

from ray import tune
from ray.tune.search import SearchAlgorithm

from components.cluster.scheduling.clone_searchers import PresampledSearch, SearcherWithClones
from components.cluster.scheduling.tpe import BranchedTpe
from components.cluster.slots.trial_config import KEY, TrialConfig
from components.experiment.space import sample_trials
from components.experiment.spec import ExperimentSpec


def parameter_space(experiment: ExperimentSpec) -> dict[str, Any]:
    """Returns all trials of a random or grid search, already sampled; nothing for TPE, which suggests one after another."""
    if experiment.search.sampler == "tpe":
        return {}
    configs = [
        TrialConfig(number=number, branch=trial.branch, varied=trial.varied, spec=trial.spec).to_tune()
        for number, trial in enumerate(sample_trials(experiment), start=1)
    ]
    return {KEY: tune.grid_search([config[KEY] for config in configs])}


def search_algorithm(experiment: ExperimentSpec, budget: int, search_id: str) -> SearchAlgorithm:
    """Returns Optuna's TPE, which learns within each branch from the results of its trials; else the sampled trials in order.

    `budget` is in target tokens.
    """
    max_concurrent = experiment.search.max_concurrent_trials
    if experiment.search.sampler != "tpe":
        return PresampledSearch(search_id, max_concurrent)
    return SearcherWithClones(search_id, BranchedTpe(experiment, budget), max_concurrent)
