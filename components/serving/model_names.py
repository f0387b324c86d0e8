"""The models that a person asks to be served, as written on a command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from components.errors import InputError


def sources_of(given: Sequence[str]) -> dict[str, str]:
    """Returns each model by the name that clients use. Raises InputError if two have one name."""
    sources: dict[str, str] = {}
    for model in given:
        name, equals, source = model.partition("=")
        name, source = (name, source) if equals else (model.removeprefix("models:/"), model)
        if not name or not source:
            raise InputError(f"{model}: write it as NAME=MODEL")
        if name in sources:
            raise InputError(f"{name}: two models of one name; call one of them otherwise: NAME={source}")
        sources[name] = _source(source)
    return sources


def _source(model: str) -> str:
    """Returns a model as it is loaded: NAME@ALIAS and NAME/VERSION are of the registry, unless there is such a path."""
    registered = re.fullmatch(r"[^/@]+(@[^/@]+|/\d+)", model)
    return f"models:/{model}" if registered and not Path(model).exists() else model
