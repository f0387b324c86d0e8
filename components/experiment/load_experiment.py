"""Loads an experiment file with `--set` overrides as an ExperimentSpec, with errors for users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from components.experiment.check_search import check_search
from components.experiment.experiment_errors import ExperimentError, Problem, problems_of, unknown_key
from components.experiment.parse_trial import read_branch, read_trial
from components.experiment.read_yaml import read_value, read_yaml
from components.experiment.space import METHOD_KINDS
from components.experiment.spec import ExperimentSpec
from components.storage.excerpt import excerpt

SPACE_PATH = ["search", "space"]


def load_experiment(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> ExperimentSpec:
    """Reads an experiment, applies overrides, and checks it with its whole search space.

    Args:
        path: a YAML file.
        overrides: `a.b=value` strings, whose values are read as YAML (an empty one is null); or dotted path -> value.

    Raises:
        ExperimentError: with every problem that was found.
    """
    tree = read_yaml(Path(path))
    for location, dotted_path, value in _read_overrides(overrides):
        _set(tree, location, dotted_path, value)
    try:
        experiment = ExperimentSpec.model_validate(tree)
        check_search(experiment)
    except ValidationError as error:
        raise ExperimentError(_all_problems(tree, error), where=str(path)) from None
    except ExperimentError as error:
        raise ExperimentError(error.problems, where=str(path)) from None
    return experiment


def _all_problems(tree: Mapping[str, Any], error: ValidationError) -> list[Problem]:
    """Returns pydantic's findings and the problems of ranges; the latter replace the former at the same location."""
    read = list(_problems_of_ranges(tree))
    known = [problem.location for problem in read]
    found = problems_of(error, ExperimentSpec)
    return [problem for problem in found if not any(_overlap(problem.location, location) for location in known)] + read


def _problems_of_ranges(tree: Mapping[str, Any]) -> Iterator[Problem]:
    trial, space = tree.get("trial"), _mapping(tree.get("search")).get("space")
    named = _mapping(_mapping(trial).get("method")).get("kind")
    kind = str(named) if named in METHOD_KINDS else METHOD_KINDS[0]
    if isinstance(trial, Mapping):
        yield from read_trial(trial, kind=kind, location="trial", where="trial").problems
    for name, branch in _mapping(space).items():
        yield from read_branch(str(name), branch, kind=kind).problems


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def _read_overrides(overrides: Sequence[str] | Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """(name for errors, dotted path, value) of each."""
    if isinstance(overrides, Mapping):
        yield from ((f"override {path}", path, value) for path, value in overrides.items())
        return
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ExperimentError([Problem(location=f"--set {override}", text="write it as key.subkey=value")])
        yield f"--set {override}", path, read_value(text)


def _set(tree: dict[str, Any], location: str, path: str, value: Any) -> None:
    if not all(path.split(".")):
        raise ExperimentError([Problem(location=location, text="write it as key.subkey=value")])
    *parents, leaf = path.split(".")
    node: Any = tree
    for depth, parent in enumerate(parents):
        if parents[:depth] == SPACE_PATH and isinstance(node, dict) and parent not in node:
            whole = f"a new branch is set whole, as search.space.{parent}={{...}}"
            text = f"{unknown_key(parent, sorted(map(str, node)))}; {whole}"
            raise ExperimentError([Problem(location=location, text=text)])
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            above = ".".join(parents[: depth + 1])
            raise ExperimentError(
                [Problem(location=location, text=f"{above} is {excerpt(repr(node))}, which has no keys")]
            )
    node[leaf] = value
