"""Held-out questions that are asked of candidate and base side by side."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator
from typing_extensions import TypedDict

from components.conversations.expected import expect_problem
from components.conversations.messages import Message
from components.conversations.openai_messages import messages_of
from components.errors import InputError
from components.scoring.expectations import is_met

FORM = '{"messages": [{"role": "user", "content": "..."}], "expect": "a word"}'


class ProbeMessage(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class Probe(BaseModel):
    """A question, with the conversation before it, and what its answer should hold: words, or a pattern as /.../."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[ProbeMessage, ...]
    expect: str | None = None

    @model_validator(mode="after")
    def _asks(self) -> Self:
        last = self.messages[-1]["role"] if self.messages else "nobody"
        if last != "user":
            raise ValueError(f'the last message is from "{last}", and must be the user\'s question')
        return self

    @field_validator("expect")
    @classmethod
    def _can_be_met(cls, expect: str | None) -> str | None:
        if expect and (problem := expect_problem(expect)):
            raise ValueError(problem)
        return expect

    def conversation(self) -> list[Message]:
        return messages_of(self.messages)


def load_probes(path: Path) -> tuple[Probe, ...]:
    """Reads a JSONL file. Raises InputError with all that is wrong with it."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"registry.probes={path}: cannot be read: {error}") from None
    probes: list[Probe] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                probes.append(Probe.model_validate_json(line))
        except ValidationError as error:
            problems.extend(f"  line {number}: {text}" for text in _texts(error))
    if problems:
        raise InputError("\n".join([f"registry.probes={path}: each line must look like {FORM}", *problems]))
    if not probes:
        raise InputError(f"registry.probes={path}: holds no probe; each line must look like {FORM}")
    return tuple(probes)


def probes_answered(answers: Iterable[str], probes: Iterable[Probe]) -> tuple[int, int]:
    """Returns how many answers hold what was expected, and how many probes expect one."""
    wanted = [(answer, probe.expect) for answer, probe in zip(answers, probes, strict=True) if probe.expect]
    return sum(is_met(expect, answer) for answer, expect in wanted), len(wanted)


def _texts(error: ValidationError) -> Iterator[str]:
    for finding in error.errors(include_url=False):
        place = ".".join(map(str, finding["loc"]))
        text = str(finding["msg"]).removeprefix("Value error, ")
        yield f"{place}: {text}" if place else text
