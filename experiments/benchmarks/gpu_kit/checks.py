"""What a part of the kit says: checks, one a line, as they are made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

Verdict = Literal["passed", "failed", "skipped", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One question and its answer.

    `measured` is a figure without a bound, `skipped` what is impossible here; `seen` then says why. `figures` hold the
    numbers behind `seen`, with their units in their names.
    """

    asked: str
    seen: str
    verdict: Verdict
    figures: Mapping[str, float | str] = field(default_factory=dict)


def passed_if(holds: bool, asked: str, seen: str, **figures: float | str) -> Check:
    return Check(asked=asked, seen=seen, verdict="passed" if holds else "failed", figures=figures)


def measured(asked: str, seen: str, **figures: float | str) -> Check:
    return Check(asked=asked, seen=seen, verdict="measured", figures=figures)


def skipped(asked: str, reason: str) -> Check:
    return Check(asked=asked, seen=reason, verdict="skipped")


def failed(asked: str, reason: str) -> Check:
    return Check(asked=asked, seen=reason, verdict="failed")


def append(file: Path, check: Check) -> None:
    """Adds a check to a file of JSON lines, so that it survives the process that made it."""
    with file.open("a", encoding="utf-8") as opened:
        opened.write(json.dumps(asdict(check)) + "\n")


def read(file: Path) -> list[Check]:
    """Returns the checks of a file; none if it does not exist. A line that was cut short is left out."""
    if not file.exists():
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[:-1]  # a line is complete with its end
    return [Check(**json.loads(line)) for line in lines]
