"""Draws the trials of a search: no two of them have the same configuration."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from components.experiment.space import (
    Branch,
    branch_order,
    branches_of,
    configuration_key,
    grid_of,
    num_points,
    trial_spec,
)
from components.experiment.spec import ExperimentSpec, TrialSpec
from components.experiment.start_points import start_points

MAX_DRAWS = 32  # of one trial; after that the points that are left are listed


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledTrial:
    """A point of the space: the values that were drawn, and the whole configuration."""

    branch: str
    varied: Mapping[str, Any]
    spec: TrialSpec


def sample_trials(experiment: ExperimentSpec) -> list[SampledTrial]:
    """Draws all trials of a random or grid search at once from the experiment's seed, in branch_order.

    The first trials of a branch are the points that search.start_from gives it.
    """
    generator = random.Random(experiment.search.seed)
    grids = {name: grid_of(branch) for name, branch in branches_of(experiment).items()}
    given = {name: iter(points) for name, points in start_points(experiment).items()}
    taken: set[str] = set()
    sampled = []
    for branch in branch_order(experiment):
        if experiment.search.sampler == "grid":
            values = next(grids[branch.name])
        else:
            drawn = draw_values(experiment, branch, generator, taken=taken, given=next(given[branch.name], {}))
            assert drawn is not None, "num_trials counts no more trials than points"
            values = drawn
        spec = trial_spec(experiment, branch, values)
        taken.add(configuration_key(spec))
        sampled.append(SampledTrial(branch=branch.name, varied=values, spec=spec))
    return sampled


def draw_values(
    experiment: ExperimentSpec,
    branch: Branch,
    generator: random.Random,
    *,
    taken: Collection[str],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Draws a point of the branch with the `given` values; None if every such point is taken.

    Args:
        taken: the configuration_key of each trial that there is already.
    """

    def is_free(values: Mapping[str, Any]) -> bool:
        return configuration_key(trial_spec(experiment, branch, values)) not in taken

    given = dict(given or {})
    for _ in range(MAX_DRAWS):
        values = {path: domain.draw(generator) for path, domain in branch.domains.items()} | given
        if is_free(values):
            return values
    points = grid_of(branch) if num_points(branch) else iter(())
    left = [
        values for values in points if all(values[path] == value for path, value in given.items()) and is_free(values)
    ]
    return generator.choice(left) if left else None
