"""`precision: auto`, which is decided for each branch when a search is opened (training/model_settings.py)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from components.experiment.space import branches_of, corner_trials
from components.experiment.spec import FLASH_ATTENTION, Dtype, ExperimentSpec

AUTO = "auto"
PRECISION = "precision"  # the key of a trial


def precisions(experiment: ExperimentSpec, *, on_cpu: Dtype, on_gpu: Dtype) -> dict[str, Dtype]:
    """Returns what `auto` comes to, by branch: what its workers' devices are fast in.

    Weights in bf16 and flash attention compute in bf16 only: where the file asks for one of them, it is bf16.
    """
    found: dict[str, Dtype] = {}
    for branch in branches_of(experiment).values():
        trials = list(corner_trials(experiment, branch))
        gpus = experiment.resources.of(trials[0].method).gpus_per_worker
        asked = branch.model.attention == FLASH_ATTENTION or any(
            (trial.dtype or branch.model.dtype) == "bf16" for trial in trials
        )
        found[branch.name] = "bf16" if asked else on_gpu if gpus else on_cpu
    return found


def with_precisions(experiment: ExperimentSpec, decided: Mapping[str, Dtype]) -> ExperimentSpec:
    """Returns the experiment with these precisions in place of `auto`, by branch. Others stay as they are."""
    search, by_default = experiment.search, experiment.trial.precision == AUTO
    space = {
        name: _with_precision(tree, decided[name], by_default=by_default) if name in decided else tree
        for name, tree in search.space.items()
    }
    points = tuple(
        point if isinstance(point, str) else _point_with_precision(point, decided) for point in search.start_from
    )
    return experiment.model_copy(update={"search": search.model_copy(update={"space": space, "start_from": points})})


def settled_value(written: Any, decided: Any) -> Any:
    """Returns what is written for a key of a branch, a value or a domain, with what was decided in place of `auto`."""
    if isinstance(written, Mapping):
        return {
            name: list(dict.fromkeys(settled_value(value, decided) for value in values))
            for name, values in written.items()
        }
    return decided if written == AUTO else written


def _with_precision(tree: Mapping[str, Any], decided: Dtype, *, by_default: bool) -> Mapping[str, Any]:
    if PRECISION in tree:
        return {**tree, PRECISION: settled_value(tree[PRECISION], decided)}
    return {**tree, PRECISION: decided} if by_default else tree


def _point_with_precision(point: Mapping[str, Any], decided: Mapping[str, Dtype]) -> dict[str, Any]:
    branch = str(point.get("branch"))
    if PRECISION not in point or branch not in decided:
        return dict(point)
    return {**point, PRECISION: settled_value(point[PRECISION], decided[branch])}
