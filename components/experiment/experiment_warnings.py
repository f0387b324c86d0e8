"""Warnings about settings that are valid and probably not intended, shown before a search starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.experiment.parse_trial import SHARED_BY_ALL_TRIALS, to_yaml
from components.experiment.space import (
    DEFAULT_TRIALS,
    Branch,
    branch_order,
    branches_of,
    num_points,
    num_trials,
    some_trial,
    value_at,
)
from components.experiment.spec import AshaSpec, DataSpec, ExperimentSpec, HyperbandSpec, ModelSpec


def experiment_warnings(experiment: ExperimentSpec) -> list[str]:
    """Returns a sentence for each warning, with its location and the way out."""
    branches = list(branches_of(experiment).values())
    return [
        *_trials_of_a_grid(experiment, branches),
        *_small_spaces(experiment, branches),
        *_unused_values(experiment, branches),
        *_idle_schedules(experiment, branches),
        *_unused_resources(experiment, branches),
        *_unused_split(experiment.data),
        *_unused_sample(experiment),
        *(text for model in dict.fromkeys(branch.model for branch in branches) for text in _unused_revision(model)),
    ]


def _trials_of_a_grid(experiment: ExperimentSpec, branches: list[Branch]) -> Iterator[str]:
    if experiment.search.sampler != "grid":
        return
    trials, points = num_trials(experiment), sum(map(num_points, branches))
    if trials == points:
        yield f"search.sampler=grid: all {points} points are tried"
        return
    counts = Counter(branch.name for branch in branch_order(experiment))
    shares = ", ".join(f"{branch.name} {counts[branch.name]} of {num_points(branch)}" for branch in branches)
    yield (
        f"search.trials={trials}: the grid has {points:,} points, of which only the first are tried ({shares}); leave it out"
        " to try all"
    )


def _small_spaces(experiment: ExperimentSpec, branches: list[Branch]) -> Iterator[str]:
    """Yields warnings for branches that get fewer trials than their share: no configuration is trained twice."""
    if experiment.search.sampler == "grid":
        return
    wanted, planned = experiment.search.trials or DEFAULT_TRIALS, num_trials(experiment)
    counts = Counter(branch.name for branch in branch_order(experiment))
    for position, branch in enumerate(branches):
        share = wanted // len(branches) + (position < wanted % len(branches))
        points = num_points(branch)
        if 0 < points < share:
            asked = f"search.trials={wanted}" + ", the default" * (experiment.search.trials is None)
            configurations = "1 configuration" if points == 1 else f"{points} different configurations"
            rest = "; the other branches get the rest" if planned == wanted else ""
            trials = "1 trial" if counts[branch.name] == 1 else f"{counts[branch.name]} trials"
            yield f"{asked}, but branch {branch.name} has only {configurations}: {trials}{rest}"


def _unused_values(experiment: ExperimentSpec, branches: list[Branch]) -> Iterator[str]:
    """Yields warnings for values under `trial:` that no branch uses."""
    kinds = {branch.name: some_trial(experiment, branch).method.kind for branch in branches}
    kind = experiment.trial.method.kind
    for path in _given_paths(experiment.trial):
        section = path.partition(".")[0]
        if section in SHARED_BY_ALL_TRIALS or path == "method.kind":
            continue
        value = value_at(experiment.trial, path)
        fitting = [branch for branch in branches if section != "method" or kinds[branch.name] == kind]
        if not fitting:
            yield f"trial.{path}={to_yaml(value)} is used by no trial: no branch of search.space is {kind}"
        elif all(path in branch.domains or branch.constants.get(path, value) != value for branch in fitting):
            yield f"trial.{path}={to_yaml(value)} is used by no trial: every branch of search.space has its own"


def _idle_schedules(experiment: ExperimentSpec, branches: list[Branch]) -> Iterator[str]:
    shared = set(_given_paths(experiment.trial))
    for branch in branches:
        written = shared | {*branch.constants, *branch.domains}
        is_constant = (
            some_trial(experiment, branch).schedule.name == "constant" and "schedule.name" not in branch.domains
        )
        if is_constant and "schedule.final_fraction" in written:
            yield f"schedule.final_fraction does nothing in search.space.{branch.name}: its schedule is constant"


def _given_paths(spec: BaseModel, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Yields the dotted paths of the values that were given explicitly, not by default."""
    for name in (name for name in type(spec).model_fields if name in spec.model_fields_set):
        value: Any = getattr(spec, name)
        if isinstance(value, BaseModel):
            yield from _given_paths(value, (*above, name))
        else:
            yield ".".join((*above, name))


def _unused_resources(experiment: ExperimentSpec, branches: list[Branch]) -> Iterator[str]:
    """Yields warnings for resources of unused methods. A single trial has none: train.py uses the files of searches."""
    if num_trials(experiment) == 1:
        return
    kinds = {some_trial(experiment, branch).method.kind for branch in branches}
    for kind in sorted(experiment.resources.model_fields_set - kinds):
        yield f"resources.{kind} is used by no trial: no branch of search.space is {kind}"


def _unused_split(data: DataSpec) -> Iterator[str]:
    nothing_is_split = data.eval is not None and not data.verdict_is_split
    named_by = {
        "eval_fraction": "eval" if data.eval is not None else None,
        "split_seed": "eval" if nothing_is_split else None,
        "verdict_fraction": "verdict" if data.verdict is not None else None,
    }
    for name in ("eval", "verdict"):
        written = [f"data.{key}" for key, by in named_by.items() if by == name and key in data.model_fields_set]
        what = {"eval": "what is held out", "verdict": "what the gate judges by"}[name]
        if written:
            yield f"{' and '.join(written)} {'do' if len(written) > 1 else 'does'} nothing: data.{name} names {what}"


def _unused_sample(experiment: ExperimentSpec) -> Iterator[str]:
    """Yields a warning where no rungs are. A single trial has none: train.py uses the files of searches."""
    count, scheduler = experiment.evaluation.conversations_at_rungs, experiment.search.scheduler
    if count is not None and num_trials(experiment) > 1 and not isinstance(scheduler, AshaSpec | HyperbandSpec):
        yield (
            f"evaluation.conversations_at_rungs={count} does nothing: search.scheduler {scheduler.name} has no rungs; leave"
            " it out, or choose asha or hyperband"
        )


def _unused_revision(model: ModelSpec) -> Iterator[str]:
    if model.revision is not None and ("://" in model.path or Path(model.path).expanduser().is_dir()):
        yield f"model.revision={model.revision} does nothing: model.path={model.path} is no hub id"
