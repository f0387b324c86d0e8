"""Names of checkpoint folders: step_000120 belongs to a report, step_000120+000130 was written between two."""

from __future__ import annotations


def at_report(step: int) -> str:
    """The folder's name of the checkpoint that belongs to the report at `step`."""
    return f"step_{step:06d}"


def between_reports(reported_step: int, step: int) -> str:
    """The name of an interim checkpoint: at `step`, after the report at `reported_step` (0: before the first).

    Sorted by name, checkpoints are in the order of training.
    """
    return f"{at_report(reported_step)}+{step:06d}"


def reported_step(name: str) -> int:
    """Of the report a checkpoint belongs to or comes after, by its name."""
    return int(name.removeprefix("step_").partition("+")[0])
