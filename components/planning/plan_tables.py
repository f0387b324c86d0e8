"""Tables of a plan: memory part by part, what fits on which machine for how long and how much, and remedies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from components.experiment.varied import hyperparameters
from components.planning.branch_plan import BranchPlan, NodeFit, Span
from components.storage.size import GB
from components.visible import visible


def plan_parts(branches: Sequence[BranchPlan], *, prices_as_of: str, utilization: float) -> Iterator[Table | Text]:
    """Tables, and lines of text that need not be wrapped, in the order in which they are shown."""
    yield Text()
    yield memory_table(branches)
    yield Text()
    yield cost_table(branches)
    lines = [*_remedy_lines(branches), *_remarks(branches, prices_as_of, utilization)]
    yield from (Text(visible(line)) for line in lines)


def memory_table(branches: Sequence[BranchPlan]) -> Table:
    """A column for each branch, at its largest corner; GB are 1e9 bytes."""
    table = Table(box=None, pad_edge=False, header_style="bold", title="Memory of a worker, GB", title_justify="left")
    table.add_column("")
    for branch in branches:
        table.add_column(branch.branch, justify="right")
    table.add_row("method", *[_method(branch) for branch in branches])
    table.add_row("at", *[hyperparameters(branch.corner) or "-" for branch in branches])
    table.add_row("parameters", *[f"{branch.parameters:,}" for branch in branches])
    table.add_row("of them trained", *[f"{branch.trained_parameters:,}" for branch in branches])
    table.add_row("largest micro-batch", *[f"{branch.rows} x {branch.tokens} tokens" for branch in branches])
    for part in branches[0].memory.parts:
        sizes = [branch.memory.parts[part] for branch in branches]
        if any(sizes):
            table.add_row(part, *[_gb(size) if size else "-" for size in sizes])
    table.add_row("together", *[_gb(branch.memory.total) for branch in branches], style="bold")
    table.add_row("proof of a winner", *[_gb(branch.proof.total) for branch in branches])
    measured = [branch.calibration for branch in branches]
    if any(measured):
        table.add_row("measured", *[_gb(each.peak_bytes + each.process_bytes) if each else "-" for each in measured])
    return table


def cost_table(branches: Sequence[BranchPlan]) -> Table:
    """A line for each branch on each type of machine."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("branch", "on"):
        table.add_column(name, no_wrap=True)
    for name in ("trials", "tokens, millions", "room, GB", "fits", "hours", "$ on demand", "$ spot"):
        table.add_column(name, justify="right", no_wrap=True)
    for branch in branches:
        for fit in branch.fits:
            table.add_row(
                branch.branch,
                fit.node,
                str(branch.trials),
                _span(branch.search_tokens.times(1e-6)),
                _gb(fit.room_bytes),
                "yes" if fit.fits else f"{_gb(fit.short_bytes)} GB short",
                *_costs(fit),
                style="" if fit.fits else "dim",
            )
    return table


def shortage_sentences(branches: Sequence[BranchPlan]) -> Iterator[str]:
    """The arithmetic of what fits nowhere, in a sentence for each branch."""
    for branch in branches:
        if branch.fits_somewhere:
            continue
        largest = max(branch.fits, key=lambda fit: fit.room_bytes)
        trains = branch.memory.total > largest.room_bytes
        who, memory = ("a worker holds", branch.memory) if trains else ("to prove a winner takes", branch.proof)
        parts = " + ".join(f"{part} {_gb(size)}" for part, size in memory.parts.items() if size)
        yield (
            f"{branch.branch}: {who} {parts} = {_gb(memory.total)} GB, and the most room is"
            f" {_gb(largest.room_bytes)} GB, on {largest.node}"
        )


def _remedy_lines(branches: Sequence[BranchPlan]) -> list[str]:
    lines = []
    for branch in branches:
        if branch.fits_somewhere:
            continue
        lines += ["", f"{branch.branch} fits nowhere. One after the other, these help:"]
        for remedy in branch.remedies:
            where = f", fits {', '.join(remedy.fits_on)}" if remedy.fits_on else ""
            lines.append(f"  {remedy.changes[-1]}: {_gb(remedy.total_bytes)} GB{where}")
        if not branch.remedies or not branch.remedies[-1].fits_on:
            lines.append("  and then shorter rows (data.max_tokens), a smaller model, or larger GPUs (--nodes FILE)")
    return lines


def _remarks(branches: Sequence[BranchPlan], prices_as_of: str, utilization: float) -> list[str]:
    lines = [""]
    if any(fit.dollars for branch in branches for fit in branch.fits):
        lines.append(
            f"Prices of {prices_as_of}: check yours. A machine is paid for whole, idle GPUs and start included; these"
            " are its shares."
        )
    for branch in branches:
        measured = branch.calibration
        if measured is not None:
            lines.append(
                f"{branch.branch}, measured on {measured.device}: {measured.tokens_per_second:,.0f} tokens a second"
                " and worker, padding counted."
            )
    if any(branch.calibration is None and branch.memory.device == "gpu" for branch in branches):
        lines.append(
            f"Hours are those of GPUs, all together, at {utilization:.0%} of their peak; --calibrate measures it where"
            " there is one."
        )
    if any(branch.calibration is None and branch.memory.device == "cpu" for branch in branches):
        lines.append("How long a CPU takes is measured, not computed: --calibrate.")
    lines.append("The lower end is that of a scheduler that stops what it can, the upper end lets every trial finish.")
    return lines


def _method(branch: BranchPlan) -> str:
    workers = f"{branch.workers} workers" if branch.workers > 1 else "1 worker"
    return f"{branch.method}, {workers}" + (", sharded" if branch.parallel == "fsdp" else "")


def _costs(fit: NodeFit) -> list[str]:
    return [
        _span(span) if span is not None and fit.fits else "-" for span in (fit.hours, fit.dollars, fit.spot_dollars)
    ]


def _span(span: Span) -> str:
    low, high = _number(span.low), _number(span.high)
    return low if low == high else f"{low} - {high}"


def _number(value: float) -> str:
    if value >= 10:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def _gb(size: float) -> str:
    return f"{size / GB:.1f}" if size >= 10 * GB else f"{size / GB:.2f}"
