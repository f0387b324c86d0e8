"""Errors of conversations for users, by file, record and message; all problems of a file together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from components.errors import InputError

MAX_SHOWN = 20  # problems of a file, and of a record
MAX_LETTERS = 600  # of a problem: it may quote what stands in the record


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProblem:
    """`location` is `line 41` or `record 3`; `text` names the message and the rule, and is cut to MAX_LETTERS."""

    file: str
    location: str
    text: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", shorten(self.text))

    def __str__(self) -> str:
        return f"{self.location}: {self.text}" if self.location else self.text


def shorten(text: str) -> str:
    """Returns a text of at most MAX_LETTERS, and its end: there stands the way out."""
    if len(text) <= MAX_LETTERS:
        return text
    return f"{text[: MAX_LETTERS * 3 // 4]} ... {text[-MAX_LETTERS // 4 :]}"


def of_one_record(problems: Sequence[str]) -> list[str]:
    """Returns the problems of a record; of more than MAX_SHOWN the first ones, and how many there are beside them."""
    if len(problems) <= MAX_SHOWN:
        return list(problems)
    return [*problems[:MAX_SHOWN], f"and {len(problems) - MAX_SHOWN} more problems"]


class ConversationError(InputError):
    """Conversations that cannot be used. `problems` holds every one; the message shows the first of each file.

    `records` counts all records of files that could be read.
    """

    def __init__(self, problems: Sequence[DataProblem], records: dict[str, int]) -> None:
        self.problems, self.records = tuple(problems), dict(records)
        by_file: dict[str, list[DataProblem]] = {}
        for problem in problems:
            by_file.setdefault(problem.file, []).append(problem)
        texts = [_of_file(file, mine, records.get(file)) for file, mine in islice(by_file.items(), MAX_SHOWN)]
        more = [f"... and {len(by_file) - MAX_SHOWN} more files"] if len(by_file) > MAX_SHOWN else []
        super().__init__("\n".join([*texts, *more]))


def _of_file(file: str, mine: Sequence[DataProblem], records: int | None) -> str:
    if records is None:
        return "\n".join(f"{file}: {problem}" for problem in mine)
    bad = len({problem.location for problem in mine})
    lines = [f"{file}: {bad} of {records} conversations cannot be used (data.on_bad_row=drop leaves them out)"]
    lines += [f"  {problem}" for problem in mine[:MAX_SHOWN]]
    if len(mine) > MAX_SHOWN:
        lines.append(f"  ... and {len(mine) - MAX_SHOWN} more")
    return "\n".join(lines)
