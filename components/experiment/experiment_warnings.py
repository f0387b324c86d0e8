"""Warnings about settings that are valid and probably not intended, shown before a search starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from components.experiment.parse_trial import SHARED_BY_ALL_TRIALS, to_yaml
from components.experiment.space import (
    Branch,
    branch_order,
    branches_of,
    num_points,
    num_trials,
    some_trial,
    value_at,
)
from components.experiment.spec import DataSpec, ExperimentSpec, ModelSpec


def experiment_warnings(experiment: ExperimentSpec) -> list[str]:
    """Returns a sentence for each warning, with its location and the way out."""
    branches = list(branches_of(experiment).values())
    return [
        *_trials_of_a_grid(experiment, branches),
        *_equal_trials(experiment, branches),
        *_unused_values(experiment, branches),
        *_idle_schedules(experiment, branches),
        *_unused_resources(experiment, branches),
        *_unused_split(experiment.data),
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


def _equal_trials(experiment: ExperimentSpec, branches: list[Branch]) -> Iterator[str]:
    """Yields warnings for equal trials: they end with equal weights, because all trials share the seed."""
    if experiment.search.sampler == "grid":
        return
    counts = Counter(branch.name for branch in branch_order(experiment))
    for branch in branches:
        points, trials = num_points(branch), counts[branch.name]
        if not branch.domains and trials > 1:
            yield (
                f"search.space.{branch.name} varies nothing, so its {trials} trials are one and the same; give it a range, or"
                f" set search.trials to {len(branches)}"
            )
        elif 0 < points < trials:
            yield (
                f"search.space.{branch.name} has {points} points for {trials} trials, so some are the same;"
                " search.sampler=grid tries each once"
            )


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
    written = [f"data.{name}" for name in ("eval_fraction", "split_seed") if name in data.model_fields_set]
    if data.eval is not None and written:
        yield f"{' and '.join(written)} {'do' if len(written) > 1 else 'does'} nothing: data.eval names what is held out"


def _unused_revision(model: ModelSpec) -> Iterator[str]:
    if model.revision is not None and ("://" in model.path or Path(model.path).expanduser().is_dir()):
        yield f"model.revision={model.revision} does nothing: model.path={model.path} is no hub id"
