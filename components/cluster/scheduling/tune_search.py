"""Translates the experiment's sampler for Tune: into a parameter space, or into a searcher.

Every Tune config is a TrialConfig, whichever sampler made it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.search import SearchAlgorithm

from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.clone_searchers import PresampledSearch, SearcherWithClones
from components.cluster.slots.trial_config import KEY, TrialConfig
from components.experiment.draw_trials import sample_trials
from components.experiment.spec import ExperimentSpec
from components.records.earlier_trials import EarlierTrial


def parameter_space(experiment: ExperimentSpec) -> dict[str, Any]:
    """Returns all trials of a random or grid search, already sampled; nothing if one is suggested after another."""
    if experiment.search.learns:
        return {}
    configs = [
        TrialConfig(number=number, branch=trial.branch, varied=trial.varied, spec=trial.spec).to_tune()
        for number, trial in enumerate(sample_trials(experiment), start=1)
    ]
    return {KEY: tune.grid_search([config[KEY] for config in configs])}


def search_algorithm(
    experiment: ExperimentSpec, budget: int, search_id: str, earlier: Sequence[EarlierTrial] = ()
) -> SearchAlgorithm:
    """Returns Optuna's sampler, which learns within each branch from the results of trials; else the sampled trials in order.

    Args:
        budget: of each trial, in target tokens.
        earlier: trials of other searches, from which a sampler that learns begins.
    """
    max_concurrent = experiment.search.max_concurrent_trials
    if not experiment.search.learns:
        return PresampledSearch(search_id, max_concurrent)
    return SearcherWithClones(search_id, BranchedSearcher(experiment, budget, earlier), max_concurrent)
