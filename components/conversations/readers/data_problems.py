"""Errors of conversations for users, by file, record and message; all problems of a file together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.errors import InputError

MAX_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DataProblem:
    """`location` is `line 41` or `record 3`; `text` names the message and the rule."""

    file: str
    location: str
    text: str

    def __str__(self) -> str:
        return f"{self.location}: {self.text}" if self.location else self.text


class ConversationError(InputError):
    """Conversations that cannot be used. `problems` holds every one; the message shows the first of each file.

    `records` counts all records of files that could be read.
    """

    def __init__(self, problems: Sequence[DataProblem], records: dict[str, int]) -> None:
        self.problems, self.records = tuple(problems), dict(records)
        super().__init__("\n".join(_of_file(file, self.problems, records.get(file)) for file in _files(problems)))


def _files(problems: Sequence[DataProblem]) -> list[str]:
    return list(dict.fromkeys(problem.file for problem in problems))


def _of_file(file: str, problems: Sequence[DataProblem], records: int | None) -> str:
    mine = [problem for problem in problems if problem.file == file]
    if records is None:
        return "\n".join(f"{file}: {problem}" for problem in mine)
    bad = len({problem.location for problem in mine})
    lines = [f"{file}: {bad} of {records} conversations cannot be used (data.on_bad_row=drop leaves them out)"]
    lines += [f"  {problem}" for problem in mine[:MAX_SHOWN]]
    if len(mine) > MAX_SHOWN:
        lines.append(f"  ... and {len(mine) - MAX_SHOWN} more")
    return "\n".join(lines)
