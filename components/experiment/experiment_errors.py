"""Errors of an experiment for users: each with its location, value, rule and way out, and all problems together."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from components.errors import InputError
from components.storage.excerpt import MAX_QUOTED, excerpt
from components.storage.uri import without_secrets

MAY_BE_SECRET = {"uri", "url", "key_env"}  # where people paste addresses with passwords, or the key itself

MAX_PROBLEMS = 20  # shown of one experiment
MAX_LETTERS = 600  # of a problem's text, which may quote what stands in the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One problem. `location` is the dotted key in the experiment file, or the `--set` override. Both are cut if long."""

    location: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "location", excerpt(self.location, MAX_LETTERS))
        object.__setattr__(self, "text", excerpt(self.text, MAX_LETTERS))

    def __str__(self) -> str:
        return f"{self.location}: {self.text}" if self.location else self.text


class ExperimentError(InputError):
    """An experiment that cannot run as it is written."""

    def __init__(self, problems: Sequence[Problem], where: str = "") -> None:
        self.problems = tuple(problems)
        count = f"{len(self.problems)} problem" + ("s" if len(self.problems) > 1 else "")
        head = f"{where}: {count}" if where else count
        more = [f"and {len(self.problems) - MAX_PROBLEMS} more"] if len(self.problems) > MAX_PROBLEMS else []
        super().__init__(without_secrets("\n  ".join([head, *map(str, self.problems[:MAX_PROBLEMS]), *more])))


def problems_of(error: ValidationError, model: type[BaseModel], *, prefix: str = "") -> list[Problem]:
    """Translates pydantic's findings. `prefix` is the dotted path of `model` in the file."""
    texts: dict[str, list[str]] = {}
    for finding in error.errors(include_url=False):
        path, parent = _walk(model, finding["loc"])
        location = ".".join(filter(None, [prefix, *path]))
        if finding["type"] == "extra_forbidden":
            text = unknown_key(str(finding["loc"][-1]), sorted(parent.model_fields) if parent else [])
        else:
            text = _rule_and_value(finding)
        texts.setdefault(location, []).append(text)
    # A plain union reports once per member, all at one location: `a string, or a tuple`.
    return [Problem(location=location, text="; or ".join(found)) for location, found in texts.items()]


def unknown_key(key: str, valid: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(key[:MAX_QUOTED], valid, n=1, cutoff=0.5)
    hint = f'; did you mean "{nearest[0]}"?' if nearest else ""
    return f'unknown key "{excerpt(key)}"{hint} (valid: {", ".join(valid)})'


def _rule_and_value(finding: Any) -> str:
    message = str(finding["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    value = finding["input"]
    if finding["type"] == "missing" or isinstance(value, dict) or MAY_BE_SECRET & set(finding["loc"][-1:]):
        return message
    return f"{message}, not {excerpt(repr(value))}"


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> tuple[list[str], type[BaseModel] | None]:
    """Returns the dotted path as a user writes it (without pydantic's union tags), and the model that holds its last key."""
    path: list[str] = []
    here: Any = model
    parent: type[BaseModel] | None = model
    for step in location:
        chosen = _tagged_member(here, step)
        if chosen is not None:
            here = parent = chosen
            continue
        if get_origin(here) is dict:
            path.append(str(step))
            here = parent = get_args(here)[1]
            continue
        if not (isinstance(here, type) and issubclass(here, BaseModel)) and isinstance(step, str) and path:
            continue  # the name of a type inside a plain union, e.g. `tuple[str, ...]`
        path.append(str(step))
        parent = here if isinstance(here, type) and issubclass(here, BaseModel) else None
        here = parent.model_fields[str(step)].annotation if parent and str(step) in parent.model_fields else None
    return path, parent


def _tagged_member(annotation: Any, tag: int | str) -> type[BaseModel] | None:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    for member in get_args(annotation):
        if not (isinstance(member, type) and issubclass(member, BaseModel)):
            continue
        for field in member.model_fields.values():
            if get_origin(field.annotation) is Literal and get_args(field.annotation) == (tag,):
                return member
    return None
