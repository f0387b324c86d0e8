"""Optuna's samplers by name, as a branch of a search needs them, and when they begin to suggest.

- tpe takes every ended trial into account: complete ones by loss, then stopped ones, then those that cannot be trained. It
  draws all values of a trial together, choices among them.
- gp, a Gaussian process, and cmaes, CMA-ES, see complete trials only: trial_ends.py completes the others for them. gp knows a
  choice as a dimension in which values are equal or not. cmaes does not draw choices: they come one by one from TPE, without
  regard to the other values.
- warm_up counts ended trials of the branch, those of earlier searches too. Before that, all three draw at random. cmaes
  begins at the best of them, and learns from whole generations of its own suggestions.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, TPESampler

from components.experiment.domains import Choice, Domain, Grid, Integer, LogUniform, Uniform
from components.experiment.space import Branch, branch_order, branches_of, num_points
from components.experiment.spec import ExperimentSpec, SearchSpec

MAX_STARTUP_TRIALS = 10  # Optuna's own number, for studies of a hundred trials and more
NAMES = {"tpe": "TPE", "gp": "the Gaussian process", "cmaes": "CMA-ES"}


def startup_trials(trials: int, warm_up: int | None = None) -> int:
    """Returns how many of a branch's trials are drawn at random: `warm_up`, else half of them, at least 1, at most 10."""
    return warm_up or max(1, min(MAX_STARTUP_TRIALS, trials // 2))


def good_trials(trials: int) -> int:
    """Returns how many of this many ended trials TPE takes for good ones: a quarter, at most 25.

    Optuna takes a tenth. Of a branch's dozen trials that is one or two, and from those TPE learns little.
    """
    return min(25, math.ceil(trials / 4))


def generation_size(numbers: int) -> int:
    """Returns how many suggestions over this many ranges of numbers CMA-ES makes before it learns from them (Hansen 2016)."""
    return 4 + math.floor(3 * math.log(numbers))


def make_sampler(
    search: SearchSpec, seeds: Sequence[int], trials: int, center: Mapping[str, Any] | None = None
) -> BaseSampler:
    """Returns the sampler of a branch. `seeds` go with the search's; `trials` is how many the branch has.

    CMA-ES begins at `center`; without one its warm-up has not ended.

    TPE's `constant_liar` takes running trials for bad ones, so that the next suggestions differ from them. Optuna's `group`
    is for spaces in which some parameters are missing from some trials; within a branch none is.
    """
    seed = _seed(search.seed, *seeds)
    startup = startup_trials(trials, search.warm_up)
    if search.sampler == "gp":
        return GPSampler(n_startup_trials=startup, seed=seed)
    if search.sampler == "cmaes":
        return _cmaes(seed, startup if center is None else 1, center)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will have no `gamma`
        return TPESampler(n_startup_trials=startup, gamma=good_trials, multivariate=True, constant_liar=True, seed=seed)


def center_of_cmaes(study: optuna.Study, search: SearchSpec, trials: int) -> dict[str, Any] | None:
    """Returns where CMA-ES begins: at the best trial of the warm-up; by itself it begins amid the ranges. None before."""
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < startup_trials(trials, search.warm_up):
        return None
    best = min(complete, key=lambda trial: trial.values[0])
    return {
        name: value
        for name, value in best.params.items()
        if not isinstance(best.distributions[name], CategoricalDistribution)
    }


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _cmaes(seed: int, startup: int, begin: Mapping[str, Any] | None) -> CmaEsSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will have neither `gamma` nor `x0`
        return CmaEsSampler(
            x0=None if begin is None else dict(begin),
            n_startup_trials=startup,
            independent_sampler=TPESampler(n_startup_trials=startup, gamma=good_trials, constant_liar=True, seed=seed),
            warn_independent_sampling=False,
            seed=seed,
        )


def distributions_of(branch: Branch) -> dict[str, BaseDistribution]:
    """Returns the branch's domains as Optuna has them."""
    return {path: _distribution(domain) for path, domain in branch.domains.items()}


def from_optuna(branch: Branch, suggested: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a trial's values for a suggestion."""
    return {path: _value(domain, suggested[path]) for path, domain in branch.domains.items()}


def to_optuna(branch: Branch, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the suggestion for a trial's values."""
    return {path: _position(domain, values[path]) for path, domain in branch.domains.items()}


def _distribution(domain: Domain) -> BaseDistribution:
    match domain:
        case Choice(choice=values) | Grid(grid=values):
            # By position: Optuna wants plain values, and a choice may be a list of module names.
            return CategoricalDistribution(range(len(values)))
        case Uniform(uniform=(low, high)):
            return FloatDistribution(low, high)
        case LogUniform(log_uniform=(low, high)):
            return FloatDistribution(low, high, log=True)
        case Integer(integer=(low, high)):
            return IntDistribution(low, high)


def _value(domain: Domain, suggested: Any) -> Any:
    match domain:
        case Choice(choice=values) | Grid(grid=values):
            return values[suggested]
    return suggested


def _position(domain: Domain, value: Any) -> Any:
    match domain:
        case Choice(choice=values) | Grid(grid=values):
            return values.index(value)
    return value


def sampler_remarks(experiment: ExperimentSpec, at_once: int, known: Mapping[str, int]) -> Iterator[str]:
    """Yields sentences about branches in which the sampler cannot do what it is for.

    Args:
        at_once: how many trials run or wait at any time.
        known: by branch, how many trials of earlier searches the sampler knows.
    """
    search = experiment.search
    if not search.learns:
        return
    for branch, reason in random_only(experiment, at_once, known).items():
        yield (
            f"search.sampler={search.sampler}: branch {branch} is a random search: {reason}; raise search.trials, or lower"
            " search.max_concurrent_trials" + " or search.warm_up" * (search.warm_up is not None)
        )
    if search.sampler == "cmaes":
        yield from _cmaes_remarks(experiment, known)


def random_only(experiment: ExperimentSpec, at_once: int, known: Mapping[str, int] | None = None) -> dict[str, str]:
    """Returns the branches in which the sampler never sees enough results to suggest from, with the reason.

    A branch of which every configuration is tried needs no suggestions.

    `at_once` trials run or wait at any time. Trials are assumed to end in the order in which they were suggested: at the
    n-th suggestion, all trials before it have ended except the last `at_once` - 1 of them. `known`: see sampler_remarks.
    """
    who = NAMES[experiment.search.sampler]
    order = [branch.name for branch in branch_order(experiment)]
    reasons = {}
    for name, trials in _counts(experiment).items():
        last = max(number for number, branch in enumerate(order) if branch == name)
        ended = order[: max(0, last + 1 - at_once)].count(name)
        needed = startup_trials(trials, experiment.search.warm_up) - (known or {}).get(name, 0)
        results = f"{needed} result{'s' * (needed > 1)} before it suggests one"
        if needed > 0 and trials <= needed:
            reasons[name] = f"it has {trials} trial{'s' * (trials > 1)}, and {who} wants {results}"
        elif ended < needed:
            reasons[name] = (
                f"of its {trials} trials the last is suggested when {ended} have ended, for {at_once} trials run or wait at"
                f" once, and {who} wants {results}"
            )
    return reasons


def _counts(experiment: ExperimentSpec) -> dict[str, int]:
    """By branch, the number of its trials; without branches of which every configuration is tried."""
    branches = branches_of(experiment)
    trials = Counter(branch.name for branch in branch_order(experiment))
    return {name: count for name, count in trials.items() if count != num_points(branches[name])}


def _cmaes_remarks(experiment: ExperimentSpec, known: Mapping[str, int]) -> Iterator[str]:
    branches, trials = branches_of(experiment), _counts(experiment)
    for name, branch in ((name, branches[name]) for name in trials):
        choices = [path for path, domain in branch.domains.items() if isinstance(domain, Choice | Grid)]
        numbers = len(branch.domains) - len(choices)
        if not numbers:
            yield f"search.sampler=cmaes: branch {name} has no range of numbers, so TPE draws its choices; take tpe or gp"
            continue
        if choices:
            yield (
                f"search.sampler=cmaes: in branch {name} it draws no choices: TPE does, one by one"
                f" ({', '.join(choices)}); tpe and gp draw them with the numbers"
            )
        own = trials[name] - max(0, startup_trials(trials[name], experiment.search.warm_up) - known.get(name, 0))
        if own <= generation_size(numbers):
            yield (
                f"search.sampler=cmaes: branch {name} has {own} trials after its warm-up, and CMA-ES learns after each"
                f" generation of {generation_size(numbers)}; raise search.trials, or take tpe or gp"
            )
