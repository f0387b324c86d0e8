"""JSON without what a lenient reader changes in silence: keys that stand twice, numbers that are none, half characters."""

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
    """`path` leads to it: ("messages", 1, "content"), which people read as `messages > 2 > content`."""

    path: Path
    text: str

    def __str__(self) -> str:
        return f"{where}: {self.text}" if (where := _shown(self.path)) else self.text


class _Ambiguous(dict[str, Any]):
    """An object that was written with some keys more than once; of those the last is kept."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def read_json(text: str) -> tuple[Any, list[Fault]]:
    """The value and all that is wrong inside it. Raises ValueError (JSONDecodeError with its place) if it is no JSON."""
    suspicious = bool(ESCAPED_SURROGATE.search(text))

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal suspicious
        value = dict(pairs)
        if len(value) == len(pairs):
            return value
        suspicious = True
        return _Ambiguous(pairs)

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
    """What of a value JSON could not say, or not say unmistakably, in order."""
    if isinstance(value, dict):
        for key in value.repeated if isinstance(value, _Ambiguous) else ():
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


def reason_of(error: ValueError) -> str:
    """Why a text is no JSON, without its place."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)


def ends_too_early(error: json.JSONDecodeError) -> bool:
    """Whether more text could have mended it: what a limit on length leaves behind."""
    return error.pos >= len(error.doc.rstrip()) or error.msg.startswith("Unterminated string")


def _shown(path: Path) -> str:
    """Counted from 1, as messages are everywhere else."""
    return " > ".join(str(step + 1) if isinstance(step, int) else step for step in path)
