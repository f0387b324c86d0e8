"""Loads an experiment file with `--set` overrides as an ExperimentSpec, with errors for users."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.experiment.check_search import check_search
from components.experiment.experiment_errors import ExperimentError, Problem, problems_of, unknown_key
from components.experiment.parse_trial import read_branch, read_trial
from components.experiment.space import METHOD_KINDS
from components.experiment.spec import ExperimentSpec

SPACE_PATH = ["search", "space"]
NO_EXPERIMENT = "no such experiment file; experiments/ has some"
EXPERIMENT_IS = "an experiment is a mapping of keys, e.g. `name: ...`"


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


def read_yaml(path: Path, *, missing: str = NO_EXPERIMENT, example: str = EXPERIMENT_IS) -> dict[str, Any]:
    """Reads one mapping from a YAML file.

    Raises ExperimentError if there is no such file (`missing` says so), or no mapping in it (`example` says what it is).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ExperimentError([Problem(location=str(path), text=missing)]) from None
    except (IsADirectoryError, UnicodeDecodeError) as error:
        raise ExperimentError([Problem(location=str(path), text=f"not a text file: {error}")]) from None
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ExperimentError([Problem(location=str(path), text=f"not YAML: {' '.join(str(error).split())}")]) from None
    if not isinstance(tree, dict):
        raise ExperimentError([Problem(location=str(path), text=example)])
    return tree


def read_value(text: str) -> Any:
    """Parses the value of an override as YAML; text that is not YAML is returned as it is."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """YAML without the surprises of YAML 1.1: a repeated key is an error, `no` and `on` are words, 010 is ten, 1:30 is text.

    (PyYAML implements YAML 1.1: the last of two equal keys wins, and these values are false, true, 8 and 90.) A date is text,
    too: no key has one as its value but arguments of chat templates, which write it as it is.
    """

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.YAMLError(f'line {node.start_mark.line + 1}: the key "{key[1]}" stands twice in one mapping')
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        return int(text, 0 if re.match("[-+]?0[box]", text) else 10)


_YAML = "tag:yaml.org,2002:"
_SCALARS = (  # (tag, what it looks like, its first characters)
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+|[0-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
)
_REPLACED = {f"{_YAML}timestamp", *(_YAML + tag for tag, _, _ in _SCALARS)}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, look) for tag, look in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _look, _first in _SCALARS:
    _Loader.add_implicit_resolver(_YAML + _tag, re.compile(f"^(?:{_look})$"), list(_first))
_Loader.add_constructor(f"{_YAML}int", _Loader.construct_yaml_int)


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
            raise ExperimentError([Problem(location=location, text=f"{above} is {node!r}, which has no keys")])
    node[leaf] = value
