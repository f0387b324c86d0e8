"""Names of checkpoint folders: step_000120 belongs to a report, step_000120+000130 was written between two."""

from __future__ import annotations

PREFIX = "step_"


def is_checkpoint(name: str) -> bool:
    """Whether a folder of a trial is a checkpoint, whole or not."""
    return name.startswith(PREFIX)


def at_report(step: int) -> str:
    """Returns the name of the checkpoint that belongs to the report at `step`."""
    return f"{PREFIX}{step:06d}"


def between_reports(reported_step: int, step: int) -> str:
    """Returns the name of an interim checkpoint at `step`, after the report at `reported_step` (0: before the first).

    The order of names is the order of training.
    """
    return f"{at_report(reported_step)}+{step:06d}"


def reported_step(name: str) -> int:
    """Returns the step of the report that a checkpoint belongs to or comes after, from its name."""
    return int(name.removeprefix(PREFIX).partition("+")[0])
