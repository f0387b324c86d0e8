"""Checks a whole search before anything starts: every corner of its space, its number of trials, and its first points."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from components.experiment.experiment_errors import ExperimentError, Problem, problems_of
from components.experiment.generation_rules import gate_problems, generation_problems
from components.experiment.parse_trial import to_yaml
from components.experiment.space import (
    MAX_TRIALS_OF_A_GRID,
    METHOD_KINDS,
    Branch,
    branch_from,
    branches_of,
    configuration_key,
    corners,
    grid_of,
    num_points,
    num_trials,
    read_space,
    some_trial,
    trial_spec,
    worker_problems,
)
from components.experiment.spec import ExperimentSpec, NoSchedulerSpec, SearchSpec, TrialSpec, why_alone
from components.experiment.start_points import start_problems


def check_search(experiment: ExperimentSpec) -> None:
    """Checks that every corner of the space is a valid trial, before anything starts.

    Raises ExperimentError with all problems: unreadable values, impossible values, batches too small for the workers.
    """
    problems: dict[str, Problem] = {}
    readings = read_space(experiment)
    for name, reading in readings.items():
        found = reading.problems or _branch_problems(experiment, branch_from(experiment, name, reading))
        problems.update({str(problem): problem for problem in found})
    if not problems:
        trials = [some_trial(experiment, branch) for branch in branches_of(experiment).values()]
        rest = (
            *_trial_count_problems(experiment),
            *_shared_points(experiment),
            *start_problems(experiment),
            *generation_problems(experiment, trials),
            *_sharing_problems(experiment, trials),
            *gate_problems(experiment),
        )
        problems = {str(problem): problem for problem in rest}
    if problems:
        raise ExperimentError(list(problems.values()))


def _sharing_problems(experiment: ExperimentSpec, trials: Sequence[TrialSpec]) -> Iterator[Problem]:
    """Trials that cannot share a slot beside others that can have slots of their own."""
    reasons = [why_alone(trial.method, experiment.resources.of(trial.method).max_workers) for trial in trials]
    if experiment.search.trials_per_slot > 1 and all(reasons):
        several = f"{experiment.search.trials_per_slot} trials of this search can share no slot"
        text = f"{several}: {'; '.join(dict.fromkeys(reasons))}; set it to 1"
        yield Problem(location="search.trials_per_slot", text=text)


def _branch_problems(experiment: ExperimentSpec, branch: Branch) -> Iterator[Problem]:
    yield from _naming_problems(experiment, branch)
    if experiment.search.sampler == "grid":
        for path, domain in branch.domains.items():
            if domain.points() is None:
                text = "sampler grid needs choice, grid or integer here; a continuous range has no grid"
                yield Problem(location=f"search.space.{branch.name}.{path}", text=text)
    for values in corners(branch):
        yield from _point_problems(experiment, branch, values)


def _naming_problems(experiment: ExperimentSpec, branch: Branch) -> Iterator[Problem]:
    """Yields a problem if a branch is named after one method and trains another."""
    kind = branch.constants.get("method.kind", experiment.trial.method.kind)
    if branch.name in METHOD_KINDS and branch.name != kind:
        text = f"is named after the method {branch.name} and trains {kind}"
        way_out = f"give it method.kind: {branch.name}, or another name"
        yield Problem(location=f"search.space.{branch.name}", text=f"{text}: {way_out}")


def _trial_count_problems(experiment: ExperimentSpec) -> Iterator[Problem]:
    search, trials = experiment.search, num_trials(experiment)
    needed = len(search.space)
    if trials < needed:
        number = trials if search.trials else f"{trials}, the default,"
        text = (
            f"{number} cannot be shared by {needed} branches: each needs a trial; set search.trials: {needed} or more"
        )
        yield Problem(location="search.trials", text=text)
    if search.trials is None and trials > MAX_TRIALS_OF_A_GRID:
        text = f"the grid has {trials:,} points; list fewer values, or set how many trials may run"
        yield Problem(location="search.trials", text=text)


def _point_problems(experiment: ExperimentSpec, branch: Branch, values: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        spec = trial_spec(experiment, branch, values)
    except ValidationError as error:
        yield from problems_of(error, TrialSpec, prefix=f"search.space.{branch.name}")
        return
    yield from worker_problems(experiment, spec, f"search.space.{branch.name}", branch.model)


def _shared_points(experiment: ExperimentSpec) -> Iterator[Problem]:
    """Yields a problem for two branches that list the same configuration: it would be trained twice."""
    branches = [branch for branch in branches_of(experiment).values() if 0 < num_points(branch) <= MAX_TRIALS_OF_A_GRID]
    if len(branches) < 2:
        return
    points = {
        branch.name: {configuration_key(trial_spec(experiment, branch, values)): values for values in grid_of(branch)}
        for branch in branches
    }
    for one, other in itertools.combinations(points, 2):
        shared = [values for key, values in points[other].items() if key in points[one]]
        if shared:
            example = f", e.g. {to_yaml(shared[0])}" if shared[0] else ""
            text = (
                f"{len(shared)} of its {len(points[other])} configurations are those of search.space.{one}, too{example};"
                " leave them out of one of the two"
            )
            yield Problem(location=f"search.space.{other}", text=text)


def without_search(experiment: ExperimentSpec) -> ExperimentSpec:
    """Returns the experiment with its `trial:` section as the only trial. It has its own name, beside the search's."""
    only = {experiment.trial.method.kind: {"method": {"kind": experiment.trial.method.kind}}}
    search = SearchSpec(
        space=only, sampler="random", scheduler=NoSchedulerSpec(), trials=1, metric=experiment.search.metric
    )
    alone = experiment.model_copy(
        update={
            "name": f"{experiment.name}.train",
            "search": search,
            "tracking": experiment.tracking.model_copy(update={"experiment": experiment.mlflow_experiment}),
            "registry": experiment.registry.model_copy(update={"name": experiment.registered_model}),
        }
    )
    check_search(alone)
    return alone
