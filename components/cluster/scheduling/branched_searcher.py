"""Optuna's samplers for the trials of a search: one study per branch, with losses that can be compared.

Each branch has a study of its own. TPE divides a study's trials into good and bad ones: in one study for all, with any
`group` setting, the trials of a branch whose losses are higher than another's are all bad ones, and TPE never looks for
its good region. gp and cmaes see only what all trials of a study share. Nothing is lost: branches share the trials evenly
(branch_order), so no study has to choose a branch.

Nothing of it is saved. Each draw has a sampler of its own, seeded by the trial's number, so it follows from the draws and
the ends before it; the journal has both, and a resumed search repeats them.
"""

from __future__ import annotations

import random
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from components.cluster.scheduling.samplers import (
    center_of_cmaes,
    distributions_of,
    from_optuna,
    make_sampler,
    to_optuna,
)
from components.cluster.scheduling.trial_ends import TrialEnd, end_as_complete, end_in_order
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.draw_trials import draw_values
from components.experiment.report_marks import report_marks, rungs_alone, rungs_of
from components.experiment.space import Branch, branch_order, branches_of, configuration_key, trial_spec
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.experiment.start_points import start_points
from components.records.earlier_trials import EarlierTrial
from components.records.events import Progress, TrialStarted
from components.records.histories import TrialHistories
from components.records.objectives import Measured, measured_at_marks

MAX_ASKS = 4  # for a configuration that no trial has; then one is drawn at random


class BranchedSearcher:
    """Draws trials in the order of branch_order, no two of them equal."""

    def __init__(self, experiment: ExperimentSpec, budget: int, earlier: Sequence[EarlierTrial] = ()) -> None:
        """budget: of each trial, in target tokens. earlier: trials of other searches, which the studies begin with."""
        self._experiment, self._budget = experiment, budget
        evaluations, rungs = experiment.trial.budget.evaluations, rungs_of(experiment, budget)
        self._marks = report_marks(budget, evaluations, rungs)
        self._rungs = rungs_alone(budget, evaluations, rungs)
        self._order = [branch.name for branch in branch_order(experiment)]
        self._drawn = 0
        self._told = 0
        self._running: dict[int, tuple[str, optuna.trial.Trial]] = {}  # branch and Optuna's trial, by number
        self._ended: dict[str, list[Measured]] = {name: [] for name in branches_of(experiment)}
        self._taken: set[str] = set()  # configurations
        self._centers: dict[str, dict[str, Any]] = {}  # where CMA-ES has begun, by branch
        self._positions = {name: position for position, name in enumerate(sorted(set(self._order)))}
        self._studies = {name: self._study() for name in self._positions}
        for trial in earlier:
            self._add(trial)

    def avoid(self, specs: Iterable[TrialSpec]) -> None:
        """These configurations are trained already, or will be, by trials that a person asked for."""
        self._taken.update(map(configuration_key, specs))

    @property
    def has_more(self) -> bool:
        return self._drawn < len(self._order)

    def draw(self) -> TrialConfig:
        """Returns the trial of the next number. Raises IndexError if there is none."""
        branch = self._next_branch()
        suggested, varied = self._ask(branch, self._is_free(branch))
        return self._begin(branch, suggested, varied)

    def end(self, number: int, reports: Iterable[Progress] | None, *, impossible: bool) -> None:
        """Tells the sampler of a trial's end. A lost trial that goes on ends a second time, which tells nothing new."""
        if number not in self._running:
            return
        branch, suggested = self._running.pop(number)
        metrics = self._experiment.search.metrics
        measured = measured_at_marks(reports or (), metrics, self._budget, self._marks, self._rungs)
        self._end(branch, measured, impossible).tell(self._studies[branch], suggested)
        self._told += reports is not None  # the journal knows nothing of a trial that has not begun

    def go_on_after(self, histories: TrialHistories) -> list[TrialConfig]:
        """Repeats the draws of the journal, and tells the sampler of each recorded end where it first heard of it.

        Returns the trials that are drawn once more: they had not begun, while ones of a higher number had.
        """
        own = {history.started.number: history for history in histories.values() if history.started.parent is None}
        ends = deque(histories[name] for name in histories.ends if histories[name].started.parent is None)
        self.avoid(history.started.spec for history in own.values())
        once_more = []
        for number in range(1, max(own, default=0) + 1):
            known = next(own[each].started for each in range(number, max(own) + 1) if each in own)
            while ends and self._told < (known.drawn_after or 0):
                ended = ends.popleft()
                self.end(ended.started.number, ended.reports, impossible=ended.impossible)
            if known.number == number:
                self._repeat(known)
            else:
                once_more.append(self.draw())
        for ended in ends:
            self.end(ended.started.number, ended.reports, impossible=ended.impossible)
        return once_more

    def _study(self) -> optuna.Study:
        metrics = self._experiment.search.metrics
        return optuna.create_study(directions=["minimize"] * max(1, len(metrics)))

    def _add(self, trial: EarlierTrial) -> None:
        branch = branches_of(self._experiment)[trial.branch]
        end = self._end(trial.branch, trial.measured, trial.impossible)
        if end.state is not TrialState.FAIL:
            end.add(self._studies[trial.branch], to_optuna(branch, trial.varied), distributions_of(branch))

    def _next_branch(self) -> Branch:
        return branches_of(self._experiment)[self._order[self._drawn]]

    def _begin(self, branch: Branch, suggested: optuna.trial.Trial, varied: dict[str, Any]) -> TrialConfig:
        self._drawn += 1
        self._running[self._drawn] = branch.name, suggested
        spec = trial_spec(self._experiment, branch, varied)
        self._taken.add(configuration_key(spec))
        return TrialConfig(number=self._drawn, branch=branch.name, varied=varied, spec=spec, drawn_after=self._told)

    def _repeat(self, started: TrialStarted) -> None:
        """Draws a trial of the journal again, so that its study is as it was after that draw."""
        branch, wanted = self._next_branch(), configuration_key(started.spec)
        suggested, varied = self._ask(
            branch,
            lambda asked: configuration_key(trial_spec(self._experiment, branch, asked)) == wanted,
            instead=started.varied,
        )
        self._begin(branch, suggested, varied)

    def _is_free(self, branch: Branch) -> Callable[[Mapping[str, Any]], bool]:
        return lambda varied: configuration_key(trial_spec(self._experiment, branch, varied)) not in self._taken

    def _ask(
        self, branch: Branch, accepts: Callable[[dict[str, Any]], bool], instead: Mapping[str, Any] | None = None
    ) -> tuple[optuna.trial.Trial, dict[str, Any]]:
        """Returns an accepted suggestion: a given point, the sampler's, or one drawn at random (or `instead`, if given)."""
        study, distributions = self._studies[branch.name], distributions_of(branch)
        turns = Counter(self._order[: self._drawn])[branch.name]
        points = start_points(self._experiment)[branch.name]
        given = points[turns] if turns < len(points) else None
        if given is None:
            for attempt in range(MAX_ASKS):
                self._choose_sampler(branch.name, attempt)
                suggested = study.ask(distributions)
                varied = from_optuna(branch, suggested.params)
                if accepts(varied):
                    return suggested, varied
                study.tell(suggested, state=TrialState.FAIL)
        self._choose_sampler(branch.name, MAX_ASKS)
        drawn = dict(instead) if instead is not None else self._draw_at_random(branch, given)
        study.enqueue_trial(to_optuna(branch, drawn))
        return study.ask(distributions), drawn

    def _draw_at_random(self, branch: Branch, given: Mapping[str, Any] | None) -> dict[str, Any]:
        generator = random.Random(f"{self._experiment.search.seed} {self._drawn}")
        drawn = draw_values(self._experiment, branch, generator, taken=self._taken, given=given)
        if drawn is None:  # a clone has taken the last point: its branch would have one trial less than was planned
            drawn = draw_values(self._experiment, branch, generator, taken=(), given=given)
        return drawn or {}

    def _choose_sampler(self, name: str, attempt: int) -> None:
        """Gives the study a sampler for one draw: what it draws depends on the study and on the trial's number alone."""
        search, study, trials = self._experiment.search, self._studies[name], self._order.count(name)
        if search.sampler == "cmaes" and name not in self._centers:
            center = center_of_cmaes(study, search, trials)
            if center is not None:
                self._centers[name] = center
        seeds = self._positions[name], self._drawn, attempt
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.sampler = make_sampler(search, seeds, trials, self._centers.get(name))

    def _end(self, branch: str, measured: Measured, impossible: bool) -> TrialEnd:
        search = self._experiment.search
        others = self._ended[branch]
        if search.sampler == "tpe" and not search.metrics:
            end = end_in_order(measured, marks=self._marks, impossible=impossible)
        else:
            end = end_as_complete(measured, marks=self._marks, impossible=impossible, others=others)
        self._ended[branch] = [*others, measured]
        return end
