"""adapter_config.json from outside, checked before peft gets it: its kind, its sizes, and regular expressions that end.

peft matches the expressions of an adapter's configuration against every module's name, and Python's `re` may take years
for one: `(a+)+$`. So they are matched once in a process of their own, which is ended after PATTERN_SECONDS.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from components.errors import InputError
from components.storage.foreign_files import read_object, reason_of

CONFIG_FILE = "adapter_config.json"
PATTERN_SECONDS = 10.0
DEFAULT_RANK = 8  # peft's
A = re.compile(r"\blora_(embedding_)?A\b")
OF_NAMES = ("target_modules", "exclude_modules")  # an expression if they are a text, else names
OF_LISTS = ("modules_to_save", "layers_pattern")  # names that peft puts into an expression
OF_SIZES = ("rank_pattern", "alpha_pattern")  # a number by an expression
ALL_LINEAR = "all-linear"  # peft's word, and no expression
MATCH = """
import json, re, sys
patterns, names = json.load(sys.stdin)
for pattern in patterns:
    expression = re.compile(pattern)
    for name in names:
        expression.match(name)
"""


def check_adapter_config(directory: Path, modules: Iterable[str], weights: Mapping[str, Tensor]) -> None:
    """Reads an adapter's configuration, and tries its expressions on the names of a model's modules.

    Raises InputError if it is no LoRA, if a rank is larger than in its weights (peft would make room for it), or if an
    expression is none, or does not end in PATTERN_SECONDS.
    """
    file = directory / CONFIG_FILE
    settings = read_object(file)
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{file}: an adapter of peft_type {kind!r}; LoRA adapters are loaded here, and no others")
    ranks = settings.get("rank_pattern") or {}
    if not isinstance(ranks, dict):
        raise InputError(f"{file}: rank_pattern must be an object, not {reason_of(ValueError(repr(ranks)))}")
    largest = max((len(weight) for name, weight in weights.items() if A.search(name) and weight.dim()), default=0)
    for name, rank in {"r": settings.get("r", DEFAULT_RANK), **ranks}.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= largest:
            raise InputError(
                f"{file}: the rank of {name[:80]} is {str(rank)[:80]}, and its weights have ranks from 1 to {largest}"
            )
    check_patterns(settings, modules, file)


def check_patterns(settings: Mapping[str, Any], modules: Iterable[str], file: Path) -> None:
    """Raises InputError, beginning with `file`, if one of the expressions is none, or does not end."""
    expressions = list(_expressions(settings))
    if not expressions:
        return
    try:
        tried = subprocess.run(
            [sys.executable, "-I", "-c", MATCH],
            input=json.dumps([expressions, list(modules)]),
            capture_output=True,
            text=True,
            timeout=PATTERN_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{file}: a regular expression in it ({_some(expressions)}) has not been matched with the model's modules within"
            f" {PATTERN_SECONDS:g} seconds; write target_modules as a list of names"
        ) from None
    if tried.returncode != 0:
        said = (tried.stderr.strip() or "no reason").splitlines()[-1]
        raise InputError(f"{file}: {_some(expressions)} is no regular expression ({reason_of(ValueError(said))})")


def _expressions(settings: Mapping[str, Any]) -> Iterator[str]:
    """Returns what peft makes of the configuration (check_target_module_exists, get_pattern_key)."""
    for key in OF_NAMES:
        value = settings.get(key)
        if isinstance(value, str) and value != ALL_LINEAR:
            yield rf"(?:{value})\Z"
    for key in OF_LISTS:
        value = settings.get(key) or ()
        for name in [value] if isinstance(value, str) else value if isinstance(value, list) else ():
            yield rf"(?:^|.*\.){name}($|\..*)"
    for key in OF_SIZES:
        value = settings.get(key) or {}
        yield from (rf"(.*\.)?({name})$" for name in (value if isinstance(value, dict) else ()))


def _some(expressions: list[str]) -> str:
    shown = ", ".join(expressions)
    return shown if len(shown) <= 120 else f"{shown[:120]}..."
