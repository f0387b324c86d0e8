"""What a search keeps on its storage, as a table that a person can check."""

from __future__ import annotations

from collections.abc import Iterator

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
    records = sum(each.trials * each.records for each in use.branches)
    yield (
        f"At the end {size_in_words(use.end)}: the best weights of every trial, prepared data"
        f" ({size_in_words(use.prepared)}), journal and evaluations ({size_in_words(records)})."
    )
    yield f"A trial that runs has up to {len(use.checkpoints)} checkpoints: {', '.join(use.checkpoints)}."
    peaks = _peaks(use)
    most = max(peaks)
    one = f"{size_in_words(peaks[1])} with one trial at a time"
    yield f"At most {one}" + (f", {size_in_words(peaks[most])} with {most} at once." if most > 1 else ".")
    if budget_gb is not None:
        held = [count for count, peak in peaks.items() if peak <= budget_gb * GB]
        room = f"up to {max(held)} {'trials' if max(held) > 1 else 'trial'} at once" if held else "not even one trial"
        yield f"storage.budget_gb={budget_gb:g} holds {room}."


def _peaks(use: DiskUse) -> dict[int, int]:
    """By how many trials run at once."""
    most = sum(use.running.values())
    return {count: use.model_copy(update={"max_concurrent": count}).peak for count in range(1, most + 1)}
