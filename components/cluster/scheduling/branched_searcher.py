"""Optuna's samplers as a searcher for Tune: one study per branch, with losses that can be compared.

Each branch has a study of its own. TPE divides a study's trials into good and bad ones: in one study for all, with any
`group` setting, the trials of a branch whose losses are higher than another's are all bad ones, and TPE never looks for
its good region. gp and cmaes see only what all trials of a study share. Nothing is lost: branches share the trials evenly
(branch_order), so no study has to choose a branch.
"""

from __future__ import annotations

import pickle
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from components.cluster.scheduling.samplers import (
    center_cmaes,
    distributions_of,
    from_optuna,
    make_sampler,
    to_optuna,
)
from components.cluster.scheduling.trial_ends import TrialEnd, end_as_complete, end_in_order
from components.cluster.slots.slot_result import METRIC, SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.draw_trials import draw_values
from components.experiment.report_marks import report_marks, rungs_of
from components.experiment.space import Branch, branch_order, branches_of, configuration_key, trial_spec
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.experiment.start_points import start_points
from components.records.earlier_trials import EarlierTrial
from components.records.events import Progress
from components.records.objectives import Measured, measured_at_marks

MAX_ASKS = 4  # for a configuration that no trial has; then one is drawn at random


class BranchedSearcher(Searcher):  # type: ignore[misc]
    """Suggests trials in the order of branch_order, no two of them equal. Tune pickles its state by save() and restore()."""

    def __init__(self, experiment: ExperimentSpec, budget: int, earlier: Sequence[EarlierTrial] = ()) -> None:
        """budget: of each trial, in target tokens. earlier: trials of other searches, which the studies begin with."""
        super().__init__(metric=METRIC, mode="min")
        self._experiment, self._budget = experiment, budget
        self._marks = report_marks(budget, experiment.trial.budget.evaluations, rungs_of(experiment, budget))
        self._order = [branch.name for branch in branch_order(experiment)]
        self._num_suggested = 0
        self._running: dict[str, tuple[str, optuna.trial.Trial]] = {}  # branch and Optuna's trial, by Tune's id
        self._reports: dict[str, list[Progress]] = {}  # by Tune's id, of those running
        self._ended: dict[str, list[Measured]] = {name: [] for name in branches_of(experiment)}
        self._taken: set[str] = set()  # configurations
        self._centered: set[str] = set()  # branches in which CMA-ES has begun
        self._positions = {name: position for position, name in enumerate(sorted(set(self._order)))}
        self._studies = {name: self._study(name) for name in self._positions}
        for trial in earlier:
            self._add(trial)

    def avoid(self, specs: Iterable[TrialSpec]) -> None:
        """These configurations are trained already, or will be, by trials that a person asked for."""
        self._taken.update(map(configuration_key, specs))

    def suggest(self, trial_id: str) -> dict[str, Any] | str:
        if self._num_suggested == len(self._order):
            return str(Searcher.FINISHED)
        branch = branches_of(self._experiment)[self._order[self._num_suggested]]
        suggested, varied = self._ask(branch)
        self._num_suggested += 1
        self._running[trial_id] = branch.name, suggested
        self._reports[trial_id] = []
        spec = trial_spec(self._experiment, branch, varied)
        self._taken.add(configuration_key(spec))
        return TrialConfig(number=self._num_suggested, branch=branch.name, varied=varied, spec=spec).to_tune()

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keeps the reports, to compare trials at equal target tokens."""
        report = SlotResult.of(result).report
        if trial_id in self._running and report is not None:
            self._reports[trial_id].append(report.model_copy(update={"steps": ()}))

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing for a trial that has ended before: a resumed search ends some trials a second time."""
        if trial_id not in self._running:
            return
        if result is not None:
            self.on_trial_result(trial_id, result)
        branch, suggested = self._running.pop(trial_id)
        metrics = self._experiment.search.metrics
        measured = measured_at_marks(self._reports.pop(trial_id), metrics, self._budget, self._marks)
        self._end(branch, measured, result is not None and _is_impossible(result)).tell(
            self._studies[branch], suggested
        )

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(pickle.dumps(self.__dict__))

    def restore(self, checkpoint_path: str) -> None:
        self.__dict__.update(pickle.loads(Path(checkpoint_path).read_bytes()))

    def _study(self, name: str) -> optuna.Study:
        search = self._experiment.search
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.create_study(
                directions=["minimize"] * max(1, len(search.metrics)),
                sampler=make_sampler(search, self._positions[name], self._order.count(name)),
            )

    def _add(self, trial: EarlierTrial) -> None:
        branch = branches_of(self._experiment)[trial.branch]
        end = self._end(trial.branch, trial.measured, trial.impossible)
        if end.state is not TrialState.FAIL:
            end.add(self._studies[trial.branch], to_optuna(branch, trial.varied), distributions_of(branch))

    def _ask(self, branch: Branch) -> tuple[optuna.trial.Trial, dict[str, Any]]:
        """Returns a suggestion that no trial has: a given point, the sampler's, or one drawn at random."""
        study, distributions = self._studies[branch.name], distributions_of(branch)
        turns = Counter(self._order[: self._num_suggested])[branch.name]
        points = start_points(self._experiment)[branch.name]
        given = points[turns] if turns < len(points) else None
        if given is None:
            if self._experiment.search.sampler == "cmaes":
                self._center(branch.name)
            for _ in range(MAX_ASKS):
                suggested = study.ask(distributions)
                varied = from_optuna(branch, suggested.params)
                if configuration_key(trial_spec(self._experiment, branch, varied)) not in self._taken:
                    return suggested, varied
                study.tell(suggested, state=TrialState.FAIL)
        generator = random.Random(f"{self._experiment.search.seed} {self._num_suggested}")
        drawn = draw_values(self._experiment, branch, generator, taken=self._taken, given=given)
        if drawn is None:  # a clone has taken the last point: its branch would have one trial less than was planned
            drawn = draw_values(self._experiment, branch, generator, taken=(), given=given) or {}
        study.enqueue_trial(to_optuna(branch, drawn))
        return study.ask(distributions), drawn

    def _center(self, name: str) -> None:
        if name not in self._centered and center_cmaes(
            self._studies[name], self._experiment.search, self._positions[name], self._order.count(name)
        ):
            self._centered.add(name)

    def _end(self, branch: str, measured: Measured, impossible: bool) -> TrialEnd:
        search = self._experiment.search
        others = self._ended[branch]
        if search.sampler == "tpe" and not search.metrics:
            end = end_in_order(measured, marks=self._marks, impossible=impossible)
        else:
            end = end_as_complete(measured, marks=self._marks, impossible=impossible, others=others)
        self._ended[branch] = [*others, measured]
        return end


def _is_impossible(result: Mapping[str, Any]) -> bool:
    """Whether the trial ended because of its configuration."""
    outcome = SlotResult.of(result)
    return outcome.failure is not None or (outcome.report is not None and outcome.report.diverged is not None)
