"""Reads YAML as experiment files and `--set` have it: plain values, without surprises, and of bounded size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from components.experiment.experiment_errors import ExperimentError, Problem
from components.experiment.spec.section import HALF_CHARACTER
from components.storage.excerpt import excerpt

NO_EXPERIMENT = "no such experiment file; experiments/ has some"
EXPERIMENT_IS = "an experiment is a mapping of keys, e.g. `name: ...`"
MAX_LETTERS = 200_000  # of a file
MAX_VALUES = 20_000  # keys, values, lists and mappings, each counted where an alias repeats it
MAX_LEVELS = 30  # of lists and mappings in each other
MAX_NUMBER = 100  # letters of a number


def read_yaml(path: Path, *, missing: str = NO_EXPERIMENT, example: str = EXPERIMENT_IS) -> dict[str, Any]:
    """Reads one mapping from a YAML file.

    Raises ExperimentError if there is no such file (`missing` says so), or no mapping in it (`example` says what it is).
    """

    def refusal(text: str) -> ExperimentError:
        return ExperimentError([Problem(location=str(path), text=text)])

    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_LETTERS + 1)
    except FileNotFoundError:
        raise refusal(missing) from None
    except (OSError, ValueError) as error:  # ValueError: no UTF-8, or a NUL in the name
        raise refusal(f"not a text file: {error}") from None
    try:
        tree = parse_yaml(text)
    except yaml.YAMLError as error:
        raise refusal(f"not YAML: {excerpt(' '.join(str(error).split()))}") from None
    if not isinstance(tree, dict):
        raise refusal(example)
    return tree


def read_value(text: str) -> Any:
    """Parses the value of an override as YAML; text that is not YAML is returned as it is."""
    try:
        return parse_yaml(text)
    except yaml.YAMLError:
        return text


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text. Raises YAMLError for what is none, or is too large."""
    if len(text) > MAX_LETTERS:
        raise yaml.YAMLError(f"more than {MAX_LETTERS:,} letters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError(_TOO_DEEP) from None
    finally:
        loader.dispose()


_TOO_DEEP = f"more than {MAX_LEVELS} levels of lists and mappings in each other"


def _check(root: yaml.Node) -> None:
    """Raises YAMLError for half a character, and for a value too large or too deep once its aliases are written out."""
    known: dict[int, tuple[int, int]] = {}  # by node, as an alias is the node that it names

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Returns (values, levels)."""
        if isinstance(node, yaml.ScalarNode):
            if half := HALF_CHARACTER.search(node.value):
                raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {half[0]!a} is half a character, and no text")
            return 1, 0
        if id(node) not in known:
            known[id(node)] = 0, MAX_LEVELS  # an alias in what it names has no end
            parts = [part for each in node.value for part in (each if isinstance(each, tuple) else (each,))]
            sizes, depths = zip(*map(measure, parts), strict=True) if parts else ((), ())
            known[id(node)] = 1 + sum(sizes), 1 + max(depths, default=0)
        size, depth = known[id(node)]
        if depth > MAX_LEVELS:
            raise yaml.YAMLError(_TOO_DEEP)
        if size > MAX_VALUES:
            raise yaml.YAMLError(f"more than {MAX_VALUES:,} values")
        return size, depth

    measure(root)


class _Loader(yaml.SafeLoader):
    """YAML without the surprises of YAML 1.1: a repeated key is an error, `no` and `on` are words, 010 is ten, 1:30 is text.

    (PyYAML implements YAML 1.1: the last of two equal keys wins, and these values are false, true, 8 and 90.) A date is text,
    too: no key has one as its value but arguments of chat templates, which write it as it is. A list is no
    key, and a value has no tag (`!!set`): no key of an experiment wants one.
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if tag := getattr(event, "tag", None):
            raise yaml.YAMLError(
                f"line {event.start_mark.line + 1}: the tag {tag.replace(_YAML, '!!')}; write the value without one"
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            where = f"line {key.start_mark.line + 1}"
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.YAMLError(f"{where}: a list or a mapping as a key; a key is one word")
            if (key.tag, key.value) in seen:
                raise yaml.YAMLError(
                    f'line {node.start_mark.line + 1}: the key "{key.value}" stands twice in one mapping'
                )
            seen.add((key.tag, key.value))
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        text = str(self.construct_scalar(node)).replace("_", "")
        if len(text) > MAX_NUMBER:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: a number of {len(text):,} letters")
        return int(text, 0 if re.match("[-+]?0[box]", text) else 10)


_YAML = "tag:yaml.org,2002:"
_SCALARS = (  # (tag, what it looks like, its first characters)
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0b[01][01_]*|0o[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|[0-9][0-9_]*)", "-+0123456789"),
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
    _Loader.add_implicit_resolver(_YAML + _tag, re.compile(f"(?:{_look})\\Z"), list(_first))
_Loader.add_constructor(f"{_YAML}int", _Loader.construct_yaml_int)
