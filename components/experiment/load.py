"""From an experiment file and `--set` overrides to an ExperimentSpec, with errors for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.experiment.problems import ExperimentError, Problem, problems_of
from components.experiment.space import check_search
from components.experiment.spec import ExperimentSpec


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentSpec:
    """Reads, overrides, types and checks an experiment, its whole search space included.

    Args:
        path: a YAML file.
        overrides: `a.b=value` strings; the value is read as YAML, and an empty one is null.

    Raises:
        ExperimentError: with every problem that was found.
    """
    tree = read_yaml(Path(path))
    for override in overrides:
        _apply(tree, override)
    try:
        experiment = ExperimentSpec.model_validate(tree)
        check_search(experiment)
    except ValidationError as error:
        raise ExperimentError(problems_of(error, ExperimentSpec), where=str(path)) from None
    except ExperimentError as error:
        raise ExperimentError(error.problems, where=str(path)) from None
    return experiment


def read_yaml(path: Path) -> dict[str, Any]:
    """One mapping from a YAML file. Raises ExperimentError if there is no such file, or no mapping in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExperimentError(
            [Problem(place=str(path), text="no such experiment file; experiments/ has some")]
        ) from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ExperimentError([Problem(place=str(path), text=f"not a text file: {error}")]) from None
    try:
        tree = yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ExperimentError([Problem(place=str(path), text=f"not YAML: {' '.join(str(error).split())}")]) from None
    if not isinstance(tree, dict):
        raise ExperimentError([Problem(place=str(path), text="an experiment is a mapping of keys, e.g. `name: ...`")])
    return tree


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f'line {node.start_mark.line + 1}: the key "{key}" stands twice in one mapping')
        return super().construct_mapping(node, deep=deep)


def _apply(tree: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not all(path.split(".")):
        raise ExperimentError([Problem(place=f"--set {override}", text="write it as key.subkey=value")])
    *parents, leaf = path.split(".")
    node: Any = tree
    for depth, parent in enumerate(parents):
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            above = ".".join(parents[: depth + 1])
            raise ExperimentError([Problem(place=f"--set {override}", text=f"{above} is {node!r}, which has no keys")])
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        node[leaf] = text
