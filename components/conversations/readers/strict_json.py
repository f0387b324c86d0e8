"""Strict JSON: reports repeated keys, numbers that are not finite and half characters, which json.loads accepts."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Path = tuple[str | int, ...]
SURROGATE = re.compile(r"[\ud800-\udfff]")
ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """`path` locates it: ("messages", 1, "content"), shown as `messages > 2 > content`."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{where}: {self.text}" if (where := _path_text(self.path)) else self.text


class _RepeatedKeys(dict[str, Any]):
    """An object with repeated keys; the last value of each is kept."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def read_json(text: str) -> tuple[Any, list[Fault]]:
    """Returns the value and its faults. Raises ValueError (JSONDecodeError, with its position) if the text is not JSON."""
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

    try:
        value = json.loads(text, object_pairs_hook=mapping, parse_float=number, parse_constant=number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value, list(faults_of(value)) if suspicious else []


def faults_of(value: Any, path: Path = ()) -> Iterator[Fault]:
    """Yields, in order, the parts of a value that JSON cannot represent, or not unambiguously."""
    if isinstance(value, dict):
        for key in value.repeated if isinstance(value, _RepeatedKeys) else ():
            yield Fault(path=path, text=f'has the key "{key}" more than once; only one of its values could count')
        for key, item in value.items():
            yield from faults_of(key, path)
            yield from faults_of(item, (*path, key))
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from faults_of(item, (*path, number))
    elif isinstance(value, str):
        if found := SURROGATE.search(value):
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
