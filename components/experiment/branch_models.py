"""Searches over several base models: `search.space.BRANCH.model`, and the view of such a search as one for each model.

What holds for a base (its tokens, its abilities, its memory) is checked and decided for the view of its branches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from components.experiment.experiment_errors import Problem, problems_of
from components.experiment.spec import ExperimentSpec, ModelSpec

MODEL = "model"  # the key of a branch


def read_model(tree: Any, location: str) -> list[Problem]:
    """Returns the problems of a branch's `model:`, which has keys of the section `model:`, none of them a range."""
    if not (isinstance(tree, Mapping) and tree):
        text = "is a section, e.g. {path: somewhere}; a model is not drawn, so make a branch for each"
        return [Problem(location=location, text=text)]
    try:
        ModelSpec.model_validate({"path": "somewhere", **tree})
    except ValidationError as error:
        return problems_of(error, ModelSpec, prefix=location)
    return []


def model_of_branch(default: ModelSpec, tree: Mapping[str, Any] | None) -> ModelSpec:
    """Returns the model of a branch, given its valid `model:`. A revision belongs to its path."""
    own = tree or {}
    inherited = default.model_dump(exclude={"revision"} if "path" in own else set())
    return ModelSpec.model_validate({**inherited, **own})


def models_of(experiment: ExperimentSpec) -> dict[str, ModelSpec]:
    """Returns the model of each branch, in the order of the file."""
    return {name: model_of_branch(experiment.model, tree.get(MODEL)) for name, tree in experiment.search.space.items()}


def branches_by_model(experiment: ExperimentSpec) -> dict[ModelSpec, tuple[str, ...]]:
    """Returns the names of the branches of each model: the default model first, if a branch has it."""
    models = models_of(experiment)
    order = dict.fromkeys([model for model in models.values() if model == experiment.model] + [*models.values()])
    return {model: tuple(name for name, each in models.items() if each == model) for model in order}


def has_several_bases(experiment: ExperimentSpec) -> bool:
    return len(branches_by_model(experiment)) > 1


def view_of(experiment: ExperimentSpec, model: ModelSpec, names: Iterable[str]) -> ExperimentSpec:
    """Returns the experiment as if these branches, all of this model, were the whole space."""
    space = {name: _without_model(experiment.search.space[name]) for name in names}
    given = [each for each in experiment.search.start_from if isinstance(each, str) or each.get("branch") in space]
    search = experiment.search.model_copy(update={"space": space, "start_from": tuple(given)})
    return experiment.model_copy(update={"model": model, "search": search})


def joined(experiment: ExperimentSpec, views: Iterable[ExperimentSpec]) -> ExperimentSpec:
    """Returns the experiment with what was decided in the views; the first one's model is the default.

    Where a view's `trial:` does not pack rows any more, its branches say so.
    """
    views = list(views)
    if len(views) == 1:
        return views[0]
    space = {name: _decided(view, experiment, tree) for view in views for name, tree in view.search.space.items()}
    ordered = {name: space[name] for name in experiment.search.space}
    search = experiment.search.model_copy(update={"space": ordered})
    return experiment.model_copy(update={"model": views[0].model, "search": search})


def _decided(view: ExperimentSpec, experiment: ExperimentSpec, tree: Mapping[str, Any]) -> dict[str, Any]:
    packing = view.trial.batch.packing
    batch = dict(tree.get("batch", {}))
    if packing != experiment.trial.batch.packing and "packing" not in batch:
        batch["packing"] = packing
    return {**tree, MODEL: view.model.model_dump(mode="json"), **({"batch": batch} if batch else {})}


def _without_model(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key != MODEL}
