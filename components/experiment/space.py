"""The search space: branches of hyperparameter domains, and the trials they stand for.

A branch is written like the `trial:` section of the experiment, with a domain in the place of each value that varies:

    lora: {method: {kind: lora, rank: {choice: [8, 16]}}, optimizer: {learning_rate: {log_uniform: [1.0e-4, 2.0e-3]}}}

So a rank exists only where the method has one, and every branch has its own learning rates.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import ValidationError

from components.experiment.domains import Domain
from components.experiment.errors import ExperimentError, Problem, problems_of
from components.experiment.field_types import options
from components.experiment.read_trial import Reading, read_branch, read_trial
from components.experiment.spec import (
    ExperimentSpec,
    FullMethod,
    LoraMethod,
    NoSchedulerSpec,
    SearchSpec,
    TrialSpec,
    WorkersSpec,
)

KINDS = tuple(options(model.model_fields["kind"].annotation)[0] for model in (LoraMethod, FullMethod))
MAX_CORNERS = 4096
DEFAULT_TRIALS = 8  # of a search that is no grid
MAX_TRIALS_OF_A_GRID = 1000  # unless search.trials says more


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One method variant: fixed values and domains, each by its dotted path into a TrialSpec."""

    name: str
    constants: Mapping[str, Any]
    domains: Mapping[str, Domain]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTrial:
    """A point of the space: what the search drew, and the whole configuration it stands for."""

    branch: str
    varied: Mapping[str, Any]
    spec: TrialSpec


def branches_of(experiment: ExperimentSpec) -> dict[str, Branch]:
    """The space, read. Raises ExperimentError with everything in it that is neither a value nor a domain."""
    readings = _readings(experiment)
    problems = [problem for reading in readings.values() for problem in reading.problems]
    if problems:
        raise ExperimentError(problems)
    return {name: _branch(name, reading) for name, reading in readings.items()}


def _readings(experiment: ExperimentSpec) -> dict[str, Reading]:
    kind = experiment.trial.method.kind
    return {name: read_branch(name, tree, kind=kind) for name, tree in experiment.search.space.items()}


def _branch(name: str, reading: Reading) -> Branch:
    return Branch(name=name, constants=reading.constants, domains=reading.domains)


def trial_spec(experiment: ExperimentSpec, branch: Branch, values: Mapping[str, Any]) -> TrialSpec:
    """The configuration at one point of a branch. Raises pydantic.ValidationError if it is none."""
    return TrialSpec.model_validate(_with_values(experiment.trial, {**branch.constants, **values}))


def changed_trial(experiment: ExperimentSpec, spec: TrialSpec, changes: Mapping[str, Any]) -> TrialSpec:
    """A trial's configuration with some values changed, each by its dotted path, under the rules of the space.

    Raises ExperimentError with all problems.
    """
    named = changes.get("method.kind")
    kind = named if isinstance(named, str) else spec.method.kind
    readings = [read_trial(_nested(path, value), kind=kind, place="", where="clone") for path, value in changes.items()]
    problems = list(dict.fromkeys(problem for reading in readings for problem in reading.problems))
    if problems:
        raise ExperimentError(problems)
    values = {path: value for reading in readings for path, value in reading.constants.items()}
    try:
        changed = TrialSpec.model_validate(_with_values(spec, values))
    except ValidationError as error:
        raise ExperimentError(problems_of(error, TrialSpec)) from None
    if problems := list(_idle_workers(experiment, changed, "")):
        raise ExperimentError(problems)
    return changed


def _with_values(spec: TrialSpec, values: Mapping[str, Any]) -> dict[str, Any]:
    """A trial as a tree, each value put where its dotted path says. Another kind of method begins with its defaults."""
    tree = spec.model_dump()
    kind = values.get("method.kind", spec.method.kind)
    if kind != spec.method.kind:
        tree["method"] = {"kind": kind}  # a rank under `trial:` means nothing to a full fine-tune
    for path, value in values.items():
        _put(tree, path, value)
    return tree


def weights_fit(trained: LoraMethod | FullMethod, method: LoraMethod | FullMethod) -> bool:
    """Whether what the first method has trained is of the shape the second one trains."""
    if isinstance(trained, LoraMethod) and isinstance(method, LoraMethod):
        shape = ("rank", "target_modules", "dora")
        return all(getattr(trained, name) == getattr(method, name) for name in shape)
    return trained.kind == method.kind


def check_search(experiment: ExperimentSpec) -> None:
    """Proves that every corner of the space is a valid trial, before anything starts.

    Raises ExperimentError with all problems: what cannot be read, impossible values, batches too small for the workers.
    """
    problems: dict[str, Problem] = {}
    readings = _readings(experiment)
    for name, reading in readings.items():
        found = reading.problems or _problems_of_branch(experiment, _branch(name, reading))
        problems.update({str(problem): problem for problem in found})
    if not problems:
        problems = {str(problem): problem for problem in _too_few_trials(experiment)}
    if problems:
        raise ExperimentError(list(problems.values()))


def _problems_of_branch(experiment: ExperimentSpec, branch: Branch) -> Iterator[Problem]:
    yield from _misnamed(experiment, branch)
    if experiment.search.sampler == "grid":
        for path, domain in branch.domains.items():
            if domain.points() is None:
                text = "sampler grid needs choice, grid or integer here; a continuous range has no grid"
                yield Problem(place=f"search.space.{branch.name}.{path}", text=text)
    for values in corners(branch):
        yield from _problems_at(experiment, branch, values)


def _misnamed(experiment: ExperimentSpec, branch: Branch) -> Iterator[Problem]:
    """A branch that is named after one method and trains another."""
    kind = branch.constants.get("method.kind", experiment.trial.method.kind)
    if branch.name in KINDS and branch.name != kind:
        text = f"is named after the method {branch.name} and trains {kind}"
        way_out = f"give it method.kind: {branch.name}, or another name"
        yield Problem(place=f"search.space.{branch.name}", text=f"{text}: {way_out}")


def _too_few_trials(experiment: ExperimentSpec) -> Iterator[Problem]:
    search, trials = experiment.search, num_trials(experiment)
    needed = len(search.space)
    if trials < needed:
        said = trials if search.trials else f"{trials}, the default,"
        text = f"{said} cannot be shared by {needed} branches: each needs a trial; set search.trials: {needed} or more"
        yield Problem(place="search.trials", text=text)
    if search.trials is None and trials > MAX_TRIALS_OF_A_GRID:
        text = f"the grid has {trials:,} points; list fewer values, or set how many trials may run"
        yield Problem(place="search.trials", text=text)


def without_search(experiment: ExperimentSpec) -> ExperimentSpec:
    """The experiment with its `trial:` section as the only trial, under a name of its own beside the search's."""
    only = {experiment.trial.method.kind: {"method": {"kind": experiment.trial.method.kind}}}
    search = SearchSpec(space=only, sampler="random", scheduler=NoSchedulerSpec(), trials=1)
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


def sample_trials(experiment: ExperimentSpec) -> list[SampledTrial]:
    """All trials of a random or grid search, in branch_order, drawn at once from the experiment's seed."""
    generator = random.Random(experiment.search.seed)
    is_grid = experiment.search.sampler == "grid"
    points = {
        branch.name: _grid(branch) if is_grid else _draws(branch, generator)
        for branch in branches_of(experiment).values()
    }
    sampled = []
    for branch in branch_order(experiment):
        values = next(points[branch.name])
        sampled.append(SampledTrial(branch=branch.name, varied=values, spec=trial_spec(experiment, branch, values)))
    return sampled


def num_trials(experiment: ExperimentSpec) -> int:
    """How many trials the search sets out with: `search.trials`, by default all points of a grid, else DEFAULT_TRIALS.

    A grid has no more trials than points.
    """
    search = experiment.search
    if search.sampler != "grid":
        return search.trials or DEFAULT_TRIALS
    points = sum(num_points(branch) for branch in branches_of(experiment).values())
    return min(points, search.trials or points)


def num_points(branch: Branch) -> int:
    """How many points the grid of a branch has: 1 if it varies nothing, 0 if one of its domains is continuous."""
    return math.prod(len(domain.points() or ()) for domain in branch.domains.values())


def branch_order(experiment: ExperimentSpec) -> list[Branch]:
    """The branch of every trial. Branches share the trials evenly; the first ones get what is left over.

    In a grid, what a branch has no points for goes to the others.

    Wide trials come first: while they run, narrow ones fill the gaps, and at the end nothing waits for a gap of its own.
    Branches that want the same workers take turns, as they do in one slot: so a scheduler soon knows something of each.
    """
    branches = list(branches_of(experiment).values())
    workers = [experiment.resources.of(some_trial(experiment, branch).method) for branch in branches]
    groups: dict[WorkersSpec, list[tuple[int, int]]] = {}
    for turn, position in _turns(experiment, branches):
        groups.setdefault(workers[position], []).append((turn, position))
    widest_first = sorted(groups.items(), key=lambda item: item[0].max_workers, reverse=True)
    return [branches[position] for _, turns in widest_first for _, position in turns]


def _turns(experiment: ExperimentSpec, branches: Sequence[Branch]) -> Iterator[tuple[int, int]]:
    """(turn, position of the branch) of every trial, as if all wanted the same workers."""
    trials = num_trials(experiment)
    is_grid = experiment.search.sampler == "grid"
    most = [num_points(branch) if is_grid else trials for branch in branches]
    turns = ((turn, position) for turn in range(trials) for position, limit in enumerate(most) if turn < limit)
    return itertools.islice(turns, trials)


def some_trial(experiment: ExperimentSpec, branch: Branch) -> TrialSpec:
    """At one corner of the branch: its kind of method, and so its workers, are those of all its trials."""
    return next(corner_trials(experiment, branch))


def corner_trials(experiment: ExperimentSpec, branch: Branch) -> Iterator[TrialSpec]:
    """The configurations at the corners of a branch: whatever its trials can be, one of these is."""
    return (trial_spec(experiment, branch, values) for values in corners(branch))


def corners(branch: Branch) -> Iterator[dict[str, Any]]:
    """Every combination of extremes; where those are too many, each extreme of one domain beside the first of the others."""
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


def _problems_at(experiment: ExperimentSpec, branch: Branch, values: Mapping[str, Any]) -> Iterator[Problem]:
    try:
        spec = trial_spec(experiment, branch, values)
    except ValidationError as error:
        yield from problems_of(error, TrialSpec, prefix=f"search.space.{branch.name}")
        return
    yield from _idle_workers(experiment, spec, f"search.space.{branch.name}")


def _idle_workers(experiment: ExperimentSpec, spec: TrialSpec, place: str) -> Iterator[Problem]:
    workers = experiment.resources.of(spec.method)
    for check in (workers.check_trial, partial(experiment.model.check_trial, workers=workers)):
        try:
            check(spec)
        except ValueError as error:
            yield Problem(place=place, text=str(error))


def value_at(spec: TrialSpec, path: str) -> Any:
    """What stands at a dotted path."""
    node: Any = spec.model_dump(mode="json")
    for key in path.split("."):
        node = node[key]
    return node


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    """Sets what a dotted path names. Raises ValueError if something on the way to it has no keys."""
    *parents, leaf = path.split(".")
    node: Any = tree
    for parent in parents:
        node = node.get(parent) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise ValueError(f"{path}: there is no such value in a trial")
    node[leaf] = value


def _nested(path: str, value: Any) -> Any:
    for key in reversed(path.split(".")):
        value = {key: value}
    return value


def _draws(branch: Branch, generator: random.Random) -> Iterator[dict[str, Any]]:
    while True:
        yield {path: domain.draw(generator) for path, domain in branch.domains.items()}


def _grid(branch: Branch) -> Iterator[dict[str, Any]]:
    """Every point, the last domain varying fastest. None is made before it is asked for: a grid can be too long for that."""
    points = {path: domain.points() or () for path, domain in branch.domains.items()}
    for number in range(num_points(branch)):
        values = {}
        for path, choices in reversed(points.items()):
            number, position = divmod(number, len(choices))
            values[path] = choices[position]
        yield {path: values[path] for path in points}
