"""What a search keeps on its storage, as a table that a person can check."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import partial

from rich.table import Table
from rich.text import Text

from components.records.disk_use import DiskUse
from components.storage.size import GB, size_in_words


def disk_parts(use: DiskUse, budget_gb: float | None) -> Iterator[Table | Text]:
    """A table with a line for each branch, and what that comes to."""
    yield Text()
    yield disk_table(use)
    yield from (Text(line) for line in _lines(use, budget_gb))


def disk_table(use: DiskUse) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="Disk of the search", title_justify="left")
    table.add_column("branch", no_wrap=True)
    for name in ("trials", "checkpoint", "of it weights", "a trial that runs", "one that has ended"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in use.branches:
        table.add_row(
            each.branch,
            str(each.trials),
            size_in_words(each.checkpoint),
            size_in_words(each.weights),
            f"{len(use.checkpoints)} x {size_in_words(each.checkpoint)}",
            size_in_words(each.weights),
        )
    return table


def _lines(use: DiskUse, budget_gb: float | None) -> Iterator[str]:
    yield (
        f"At the end {size_in_words(use.end)}: the best weights of every trial, prepared data"
        f" ({size_in_words(use.prepared)}), journal and evaluations ({size_in_words(use.records)})."
    )
    yield f"A trial that runs has up to {len(use.checkpoints)} checkpoints: {', '.join(use.checkpoints)}."
    most = max(1, sum(use.running.values()))
    one = f"{size_in_words(_peak(use, 1))} with one trial at a time"
    yield f"At most {one}" + (f", {size_in_words(_peak(use, most))} with {most} at once." if most > 1 else ".")
    if budget_gb is not None:
        held = bisect_right(range(1, most + 1), budget_gb * GB, key=partial(_peak, use))  # a peak grows with the count
        room = f"up to {held} {'trials' if held > 1 else 'trial'} at once" if held else "not even one trial"
        yield f"storage.budget_gb={budget_gb:g} holds {room}."


def _peak(use: DiskUse, at_once: int) -> int:
    return use.model_copy(update={"max_concurrent": at_once}).peak
