"""Optuna's TPE as a searcher for Tune: one study per branch, with losses that can be compared.

Each branch has a study of its own because TPE divides a study's trials into good and bad ones. In one study for all, with any
`group` setting, the trials of a branch whose losses are higher than another's are all bad ones, and TPE never looks for
its good region. Nothing is lost: branches share the trials evenly (branch_order), so no study has to choose a branch.
"""

from __future__ import annotations

import math
import pickle
import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray.tune.search import Searcher

from components.cluster.slots.slot_result import METRIC, SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.domains import Choice, Domain, Grid, Integer, LogUniform, Uniform
from components.experiment.report_marks import report_marks, rungs_of
from components.experiment.space import Branch, branch_order, trial_spec
from components.experiment.spec import ExperimentSpec

MAX_STARTUP_TRIALS = 10  # Optuna's own number, for studies of a hundred trials and more


def startup_trials(trials: int) -> int:
    """Returns how many of a branch's trials are drawn at random before TPE suggests: half of them, at least 1, at most 10."""
    return max(1, min(MAX_STARTUP_TRIALS, trials // 2))


def good_trials(trials: int) -> int:
    """Returns how many of this many ended trials TPE takes for good ones: a quarter, at most 25.

    Optuna takes a tenth. Of a branch's dozen trials that is one or two, and from those TPE learns little.
    """
    return min(25, math.ceil(trials / 4))


def random_only(experiment: ExperimentSpec, at_once: int) -> dict[str, str]:
    """Returns the branches in which TPE never sees enough results to suggest from, with the reason.

    `at_once` trials run or wait at any time. Trials are assumed to end in the order in which they were suggested: at the
    n-th suggestion, all trials before it have ended except the last `at_once` - 1 of them.
    """
    order = [branch.name for branch in branch_order(experiment)]
    reasons = {}
    for name, trials in Counter(order).items():
        last = max(number for number, branch in enumerate(order) if branch == name)
        ended = order[: max(0, last + 1 - at_once)].count(name)
        needed = startup_trials(trials)
        if trials <= needed:
            reasons[name] = f"it has {trials} trial, and TPE wants {needed} result before it suggests one"
        elif ended < needed:
            reasons[name] = (
                f"of its {trials} trials the last is suggested when {ended} have ended, for {at_once} trials run or wait at"
                f" once, and TPE wants {needed} results before it suggests one"
            )
    return reasons


class BranchedTpe(Searcher):  # type: ignore[misc]
    """Suggests trials in the order of branch_order. Tune pickles its state by save() and restore().

    What a study learns of a trial, best first:
    - it spent the budget of the search: COMPLETE, with the loss at that many target tokens (an extended trial trains on);
    - it was stopped before, by the scheduler, by a person or with its slot: PRUNED, with the loss at the last evaluation
      that it reached. Optuna ranks those after all complete ones, the further the better, and by loss where they are equal;
    - it diverged, or its configuration cannot be trained: PRUNED, violating a constraint by the share of the budget that it
      did not reach. Optuna ranks those last;
    - it was lost before its first evaluation: FAIL, for nothing is known of its configuration.
    """

    def __init__(self, experiment: ExperimentSpec, budget: int) -> None:
        """budget: of each trial, in target tokens."""
        super().__init__(metric=METRIC, mode="min")
        self._experiment = experiment
        self._marks = report_marks(budget, experiment.trial.budget.evaluations, rungs_of(experiment, budget))
        self._num_suggested = 0
        self._running: dict[str, tuple[str, optuna.trial.Trial]] = {}  # branch and Optuna's trial, by Tune's id
        self._losses: dict[str, dict[int, float]] = {}  # by Tune's id and the number of evaluations, of those running
        order = branch_order(experiment)
        trials = Counter(branch.name for branch in order)
        self._studies = {
            name: optuna.create_study(
                direction="minimize",
                sampler=_sampler(experiment.search.seed, position, startup_trials(count)),
            )
            for position, (name, count) in enumerate(sorted(trials.items()))
        }

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        order = branch_order(self._experiment)
        if self._num_suggested == len(order):
            return str(Searcher.FINISHED)
        branch = order[self._num_suggested]
        self._num_suggested += 1
        suggested = self._studies[branch.name].ask(_distributions(branch))
        varied = {path: _value(domain, suggested.params[path]) for path, domain in branch.domains.items()}
        self._running[trial_id] = branch.name, suggested
        self._losses[trial_id] = {}
        spec = trial_spec(self._experiment, branch, varied)
        return TrialConfig(number=self._num_suggested, branch=branch.name, varied=varied, spec=spec).to_tune()

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keeps the loss of the first report at each planned evaluation, to compare trials at equal target tokens."""
        report = SlotResult.of(result).report
        if trial_id in self._running and report is not None and math.isfinite(report.objective):
            self._losses[trial_id].setdefault(self._evaluations(report.target_tokens), report.objective)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing for a trial that has ended before: a resumed search ends some trials a second time."""
        if trial_id not in self._running:
            return
        if result is not None:
            self.on_trial_result(trial_id, result)
        branch, suggested = self._running.pop(trial_id)
        losses = self._losses.pop(trial_id)
        self._tell(self._studies[branch], suggested, losses, impossible=result is not None and _is_impossible(result))

    def _tell(
        self, study: optuna.Study, suggested: optuna.trial.Trial, losses: Mapping[int, float], *, impossible: bool
    ) -> None:
        evaluations = len(self._marks)
        reached = max(losses, default=0)
        if impossible:
            suggested.set_constraint("share of the budget not reached", 1 - reached / (evaluations + 1))
            study.tell(suggested, state=TrialState.PRUNED)
        elif reached == evaluations:
            study.tell(suggested, losses[reached])
        elif losses:
            suggested.report(losses[reached], step=self._marks[reached - 1] if reached else 0)
            study.tell(suggested, state=TrialState.PRUNED)
        else:
            study.tell(suggested, state=TrialState.FAIL)

    def _evaluations(self, target_tokens: int) -> int:
        """Returns how many of the planned evaluations and rungs come at or before this many target tokens."""
        return sum(mark <= target_tokens for mark in self._marks)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))


def _sampler(seed: int, position: int, startup: int) -> optuna.samplers.TPESampler:
    """`constant_liar` takes running trials for bad ones, so that the next suggestions differ from them.

    Optuna's `group` is for spaces in which some parameters are missing from some trials; within a branch none is.
    """
    (branch_seed,) = np.random.SeedSequence([seed, position]).generate_state(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # Optuna 6 will have no `gamma`
        return optuna.samplers.TPESampler(
            n_startup_trials=startup, gamma=good_trials, multivariate=True, constant_liar=True, seed=int(branch_seed)
        )


def _distributions(branch: Branch) -> dict[str, BaseDistribution]:
    return {path: _distribution(domain) for path, domain in branch.domains.items()}


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
    """Returns the trial's value for a suggestion."""
    match domain:
        case Choice(choice=values) | Grid(grid=values):
            return values[suggested]
    return suggested


def _is_impossible(result: Mapping[str, Any]) -> bool:
    """Whether the trial ended because of its configuration."""
    outcome = SlotResult.of(result)
    return outcome.failure is not None or (outcome.report is not None and outcome.report.diverged is not None)
