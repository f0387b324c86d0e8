"""From an experiment file and `--set` overrides to an ExperimentSpec, with errors for people."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from components.experiment.errors import ExperimentError, Problem, problems_of, unknown_key
from components.experiment.read_trial import read_branch, read_trial
from components.experiment.space import KINDS, check_search
from components.experiment.spec import ExperimentSpec

SPACE = ["search", "space"]


def load_experiment(path: str | Path, overrides: Sequence[str] | Mapping[str, Any] = ()) -> ExperimentSpec:
    """Reads, overrides, types and checks an experiment, its whole search space included.

    Args:
        path: a YAML file.
        overrides: `a.b=value` strings, whose values are read as YAML (an empty one is null); or dotted path -> value.

    Raises:
        ExperimentError: with every problem that was found.
    """
    tree = read_yaml(Path(path))
    for place, dotted_path, value in _read_overrides(overrides):
        _set(tree, place, dotted_path, value)
    try:
        experiment = ExperimentSpec.model_validate(tree)
        check_search(experiment)
    except ValidationError as error:
        raise ExperimentError(_all_problems(tree, error), where=str(path)) from None
    except ExperimentError as error:
        raise ExperimentError(error.problems, where=str(path)) from None
    return experiment


def _all_problems(tree: Mapping[str, Any], error: ValidationError) -> list[Problem]:
    """What pydantic has found, and what reading along the fields says of ranges; the latter where both know a place."""
    read = list(_problems_of_ranges(tree))
    known = [problem.place for problem in read]
    found = problems_of(error, ExperimentSpec)
    return [problem for problem in found if not any(_overlap(problem.place, place) for place in known)] + read


def _problems_of_ranges(tree: Mapping[str, Any]) -> Iterator[Problem]:
    trial, space = tree.get("trial"), _mapping(tree.get("search")).get("space")
    named = _mapping(_mapping(trial).get("method")).get("kind")
    kind = str(named) if named in KINDS else KINDS[0]
    if isinstance(trial, Mapping):
        yield from read_trial(trial, kind=kind, place="trial", where="trial").problems
    for name, branch in _mapping(space).items():
        yield from read_branch(str(name), branch, kind=kind).problems


def _mapping(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, Mapping) else {}


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


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
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise ExperimentError([Problem(place=str(path), text=f"not YAML: {' '.join(str(error).split())}")]) from None
    if not isinstance(tree, dict):
        raise ExperimentError([Problem(place=str(path), text="an experiment is a mapping of keys, e.g. `name: ...`")])
    return tree


def parse_yaml(text: str) -> Any:
    """The tree of a YAML text, by the rules of _Loader. Raises yaml.YAMLError."""
    return yaml.load(text, Loader=_Loader)


def read_value(text: str) -> Any:
    """What stands behind the `=` of an override, typed as in a file; text that is no YAML stands for itself."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: no key twice in a mapping, `no` and `on` are words, 010 is ten and 1:30 no number.

    (YAML 1.1, which PyYAML reads, lets the last of two keys win, and says false, true, 8 and 90.)
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
_Loader.yaml_implicit_resolvers = {
    first: [(tag, look) for tag, look in resolvers if tag not in {_YAML + ours for ours, _, _ in _SCALARS}]
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
            raise ExperimentError([Problem(place=f"--set {override}", text="write it as key.subkey=value")])
        yield f"--set {override}", path, read_value(text)


def _set(tree: dict[str, Any], place: str, path: str, value: Any) -> None:
    if not all(path.split(".")):
        raise ExperimentError([Problem(place=place, text="write it as key.subkey=value")])
    *parents, leaf = path.split(".")
    node: Any = tree
    for depth, parent in enumerate(parents):
        if parents[:depth] == SPACE and isinstance(node, dict) and parent not in node:
            whole = f"a new branch is set whole, as search.space.{parent}={{...}}"
            text = f"{unknown_key(parent, sorted(map(str, node)))}; {whole}"
            raise ExperimentError([Problem(place=place, text=text)])
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            above = ".".join(parents[: depth + 1])
            raise ExperimentError([Problem(place=place, text=f"{above} is {node!r}, which has no keys")])
    node[leaf] = value
