"""Translates the experiment's sampler for Tune. Every Tune config is a TrialConfig, whichever sampler made it."""

from __future__ import annotations

from collections.abc import Sequence

from components.cluster.scheduling.branched_searcher import BranchedSearcher
from components.cluster.scheduling.numbered_searcher import NumberedSearcher, PresampledTrials, Sampler
from components.cluster.scheduling.trial_generator import TrialGenerator
from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec
from components.records.earlier_trials import EarlierTrial


def search_algorithm(
    experiment: ExperimentSpec, budget: int, search_id: str, earlier: Sequence[EarlierTrial] = ()
) -> TrialGenerator:
    """Returns what hands out the trials of a search.

    Args:
        budget: of each trial, in target tokens.
        earlier: trials of other searches, from which a sampler that learns begins.
    """
    search = experiment.search
    learned = BranchedSearcher(experiment, budget, earlier) if search.learns else None
    sampler: Sampler = learned or PresampledTrials(experiment)
    searcher = NumberedSearcher(sampler, num_trials(experiment), search.max_concurrent_trials)
    return TrialGenerator(search_id, searcher)
