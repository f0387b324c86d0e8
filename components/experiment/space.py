"""The search space: branches of hyperparameter domains, and the trials in them.

A branch is written like the `trial:` section of the experiment, with a domain instead of each value that varies:

    lora: {method: {kind: lora, rank: {choice: [8, 16]}}, optimizer: {learning_rate: {log_uniform: [1.0e-4, 2.0e-3]}}}

A rank exists only in branches whose method has one, and every branch has its own learning rates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from components.experiment.branch_models import model_of_branch
from components.experiment.domains import Domain
from components.experiment.experiment_errors import ExperimentError, Problem, problems_of
from components.experiment.parse_trial import Reading, read_branch, read_trial
from components.experiment.spec import (
    ExperimentSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    TrialSpec,
    WorkersSpec,
)
from components.experiment.type_introspection import options

METHOD_KINDS = tuple(options(model.model_fields["kind"].annotation)[0] for model in (LoraMethod, FullMethod))
MAX_CORNERS = 4096
DEFAULT_TRIALS = 8  # of a search that is not a grid
MAX_TRIALS_OF_A_GRID = 1000  # unless search.trials says more


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One method variant: fixed values and domains, each by its dotted path into a TrialSpec. `model` is its base."""

    name: str
    model: ModelSpec
    constants: Mapping[str, Any]
    domains: Mapping[str, Domain]


def branches_of(experiment: ExperimentSpec) -> dict[str, Branch]:
    """Reads the space. Raises ExperimentError with everything in it that is neither a value nor a domain."""
    readings = read_space(experiment)
    problems = [problem for reading in readings.values() for problem in reading.problems]
    if problems:
        raise ExperimentError(problems)
    return {name: branch_from(experiment, name, reading) for name, reading in readings.items()}


def read_space(experiment: ExperimentSpec) -> dict[str, Reading]:
    kind = experiment.trial.method.kind
    return {name: read_branch(name, tree, kind=kind) for name, tree in experiment.search.space.items()}


def branch_from(experiment: ExperimentSpec, name: str, reading: Reading) -> Branch:
    model = model_of_branch(experiment.model, reading.model)
    return Branch(name=name, model=model, constants=reading.constants, domains=reading.domains)


def trial_spec(experiment: ExperimentSpec, branch: Branch, values: Mapping[str, Any]) -> TrialSpec:
    """Returns the configuration at one point of a branch. Raises pydantic.ValidationError if it is invalid."""
    return TrialSpec.model_validate(_with_values(experiment.trial, {**branch.constants, **values}))


def configuration_key(spec: TrialSpec) -> str:
    """Equal for equal configurations: over the same data they end with equal weights."""
    return spec.model_dump_json()


def change_trial(
    experiment: ExperimentSpec, spec: TrialSpec, changes: Mapping[str, Any], *, model: ModelSpec | None = None
) -> TrialSpec:
    """Returns a trial's configuration with some values changed, each by its dotted path, under the rules of the space.

    `model` is that of its branch, by default the experiment's. Raises ExperimentError with all problems.
    """
    named = changes.get("method.kind")
    kind = named if isinstance(named, str) else spec.method.kind
    readings = [
        read_trial(_nest(path, value), kind=kind, location="", where="clone") for path, value in changes.items()
    ]
    problems = list(dict.fromkeys(problem for reading in readings for problem in reading.problems))
    if problems:
        raise ExperimentError(problems)
    values = {path: value for reading in readings for path, value in reading.constants.items()}
    try:
        changed = TrialSpec.model_validate(_with_values(spec, values))
    except ValidationError as error:
        raise ExperimentError(problems_of(error, TrialSpec)) from None
    if values.get("precision") == "auto":
        text = "auto is decided when a search begins; give fp32 or bf16, or leave it out"
        raise ExperimentError([Problem(location="precision", text=text)])
    if problems := list(worker_problems(experiment, changed, "", model or experiment.model)):
        raise ExperimentError(problems)
    return changed


def _with_values(spec: TrialSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a trial as a tree with `values` set at their dotted paths. A change of method starts from its defaults."""
    tree = spec.model_dump()
    kind = values.get("method.kind", spec.method.kind)
    if kind != spec.method.kind:
        tree["method"] = {"kind": kind}  # full fine-tuning has no rank, which `trial:` may give
    for path, value in values.items():
        _set_value(tree, path, value)
    return tree


def weights_fit(trained: LoraMethod | FullMethod, method: LoraMethod | FullMethod) -> bool:
    """Whether the weights that the first method trains have the shape of the second method's."""
    if isinstance(trained, LoraMethod) and isinstance(method, LoraMethod):
        shape = ("rank", "target_modules", "dora")
        return all(getattr(trained, name) == getattr(method, name) for name in shape)
    return trained.kind == method.kind


def num_trials(experiment: ExperimentSpec) -> int:
    """Returns the number of trials at the start: `search.trials`, by default all points of a grid, else DEFAULT_TRIALS.

    No search has more trials than its space has points: no configuration is trained twice.
    """
    search = experiment.search
    points = [num_points(branch) for branch in branches_of(experiment).values()]
    if search.sampler == "grid":
        return min(sum(points), search.trials or sum(points))
    wanted = search.trials or DEFAULT_TRIALS
    return min(sum(points), wanted) if all(points) else wanted


def num_points(branch: Branch) -> int:
    """Returns the number of points in the grid of a branch: 1 if it varies nothing, 0 if one of its domains is continuous."""
    return math.prod(len(domain.points() or ()) for domain in branch.domains.values())


def branch_order(experiment: ExperimentSpec) -> list[Branch]:
    """Returns the branch of every trial. Branches share the trials evenly; the first branches get the remainder.

    Trials beyond the points of a branch go to the other branches.

    Trials with many workers come first: trials with few workers fill the gaps beside them, so no large trial waits for
    room at the end. Branches with equal workers take turns, so that the scheduler soon has results of each.
    """
    branches = list(branches_of(experiment).values())
    workers = [experiment.workers_of(some_trial(experiment, branch).method) for branch in branches]
    groups: dict[WorkersSpec, list[tuple[int, int]]] = {}
    for turn, position in _turns(experiment, branches):
        groups.setdefault(workers[position], []).append((turn, position))
    widest_first = sorted(groups.items(), key=lambda item: item[0].max_workers, reverse=True)
    return [branches[position] for _, turns in widest_first for _, position in turns]


def _turns(experiment: ExperimentSpec, branches: Sequence[Branch]) -> Iterator[tuple[int, int]]:
    """Yields (turn, position of the branch) of every trial, as if all branches had equal workers."""
    trials = num_trials(experiment)
    most = [num_points(branch) or trials for branch in branches]
    turns = ((turn, position) for turn in range(trials) for position, limit in enumerate(most) if turn < limit)
    return itertools.islice(turns, trials)


def some_trial(experiment: ExperimentSpec, branch: Branch) -> TrialSpec:
    """Returns the trial at one corner. All trials of a branch have its method, and therefore its workers."""
    return next(corner_trials(experiment, branch))


def corner_trials(experiment: ExperimentSpec, branch: Branch) -> Iterator[TrialSpec]:
    """Yields the configurations at the corners of a branch. Every method and every extreme value is in one of them."""
    return (trial_spec(experiment, branch, values) for values in corners(branch))


def corners(branch: Branch) -> Iterator[dict[str, Any]]:
    """Yields every combination of extremes; if they are too many, each extreme of one domain with the first of the others."""
    extremes = {path: domain.extremes() for path, domain in branch.domains.items()}
    size = 1
    for values in extremes.values():
        size *= len(values)
    if size <= MAX_CORNERS:
        for combination in itertools.product(*extremes.values()):
            yield dict(zip(extremes, combination, strict=True))
        return
    somewhere = {path: values[0] for path, values in extremes.items()}
    for path, values in extremes.items():
        for value in values:
            yield somewhere | {path: value}


def worker_problems(experiment: ExperimentSpec, spec: TrialSpec, location: str, model: ModelSpec) -> Iterator[Problem]:
    workers = experiment.resources.of(spec.method)
    for check in (workers.check_trial, partial(model.check_trial, workers=workers)):
        try:
            check(spec)
        except ValueError as error:
            yield Problem(location=location, text=str(error))


def value_at(spec: TrialSpec, path: str) -> Any:
    """Returns the value at a dotted path."""
    node: Any = spec.model_dump(mode="json")
    for key in path.split("."):
        node = node[key]
    return node


def _set_value(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets the value at a dotted path. Raises ValueError if one of its parents has no keys."""
    *parents, leaf = path.split(".")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ValueError(f"{path}: there is no such value in a trial")
    node[leaf] = value


def _nest(path: str, value: Any) -> Any:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def grid_of(branch: Branch) -> Iterator[dict[str, Any]]:
    """Yields every point, the last domain varying fastest. Points are made one at a time, because a grid can be very long."""
    points = {path: domain.points() or () for path, domain in branch.domains.items()}
    for number in range(num_points(branch)):
        values = {}
        for path, choices in reversed(points.items()):
            number, position = divmod(number, len(choices))
            values[path] = choices[position]
        yield {path: values[path] for path in points}
