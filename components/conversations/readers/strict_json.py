"""Strict JSON: reports what json.loads accepts: repeated keys, numbers that are not finite, half characters, deep nesting."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from components.experiment.spec.section import HALF_CHARACTER

Path = tuple[str | int, ...]
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
MAX_DEPTH = 100  # levels of lists and objects: far below what json, templates and copies can follow
MAX_DIGITS = 308  # of a whole number; one of more is beyond 1.8e308, and Python reads no more than 4,300


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`path` locates it: ("messages", 1, "content"), shown as `messages > 2 > content`."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{where}: {self.text}" if (where := _path_text(self.path)) else self.text


class NestingError(ValueError):
    """A text whose lists and objects lie in each other too deeply to be read."""


class _RepeatedKeys(dict[str, Any]):
    """An object with repeated keys; the last value of each is kept."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def read_json(text: str) -> tuple[Any, list[Fault]]:
    """Returns the value and its faults. Raises ValueError (JSONDecodeError, with its position) if the text is not JSON.

    What is nested too deeply for the parser raises NestingError.
    """
    suspicious = bool(ESCAPED_SURROGATE.search(text))

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal suspicious
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        suspicious = True
        return _RepeatedKeys(pairs)

    def number(written: str) -> float:
        nonlocal suspicious
        value = float(written)
        suspicious = suspicious or not math.isfinite(value)
        return value

    def whole_number(written: str) -> float:
        return int(written) if len(written) <= MAX_DIGITS else number(written)

    try:
        value = json.loads(
            text, object_pairs_hook=mapping, parse_float=number, parse_constant=number, parse_int=whole_number
        )
    except RecursionError:
        raise NestingError("nested too deeply") from None
    suspicious = suspicious or (text.count("[") + text.count("{") > MAX_DEPTH and _is_deep(value))
    return value, list(faults_of(value)) if suspicious else []


def _is_deep(value: Any) -> bool:
    """Whether a value has more than MAX_DEPTH levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        lists = [each.values() if isinstance(each, dict) else each for each in level]
        level = [item for each in lists for item in each if isinstance(item, dict | list)]
    return bool(level)


def faults_of(value: Any, path: Path = ()) -> Iterator[Fault]:
    """Yields, in order, the parts of a value that JSON cannot represent, or not unambiguously, or that lie too deep."""
    if len(path) >= MAX_DEPTH and isinstance(value, dict | list | tuple):
        yield Fault(path=path[:1], text=f"has more than {MAX_DEPTH} levels of lists and objects")
    elif isinstance(value, dict):
        for key in value.repeated if isinstance(value, _RepeatedKeys) else ():
            yield Fault(path=path, text=f'has the key "{key}" more than once; only one of its values could count')
        for key, item in value.items():
            if not isinstance(key, str):
                yield Fault(path=path, text=f"the key {key!r} is no text")
            yield from faults_of(key, path)
            yield from faults_of(item, (*path, str(key)))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from faults_of(item, (*path, number))
    elif isinstance(value, str):
        if found := HALF_CHARACTER.search(value):
            yield Fault(path=path, text=f"has half a character, \\u{ord(found[0]):04x}, which is no text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield Fault(path=path, text=f"{value} is no number that JSON has (or one beyond 1.8e308)")
    elif not isinstance(value, bool | int | None):
        yield Fault(path=path, text=f"a {type(value).__name__} is nothing that JSON has")


def json_error_reason(error: ValueError) -> str:
    """Returns why a text is not JSON, without the position."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def ends_too_early(error: json.JSONDecodeError) -> bool:
    """Whether the text ends too early, as after a limit on its length."""
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")


def _path_text(path: Path) -> str:
    """Returns a path with positions counted from 1, as messages are counted everywhere."""
    return " > ".join(str(step + 1) if isinstance(step, int) else step for step in path)
