"""The loss of one or two models seen from several sides, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from rich.text import Text

from components.records.loss_views import EndCalibration, LossSlice, LossViews, sides_of
from components.visible import visible


def sides_table(views: Mapping[str, LossViews]) -> Table:
    """`views` by the models' names. One line for the whole split, then one for each group of each side."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("by", no_wrap=True)
    table.add_column("")
    table.add_column("targets", justify="right", no_wrap=True)
    for name in views if len(views) > 1 else [""]:
        table.add_column(Text(visible(f"loss {name}".strip())), justify="right")
        table.add_column("right", justify="right")
    all_views = list(views.values())
    wholes = [view.whole for view in all_views]
    table.add_row("", "all", f"{wholes[0].num_targets:,}", *_numbers(wholes))
    before = ""
    for side, group, slices in sides_of(all_views):
        first = slices[0]
        assert first is not None
        table.add_row("" if side == before else side, Text(visible(group)), f"{first.num_targets:,}", *_numbers(slices))
        before = side
    return table


def ends_sentence(ends: EndCalibration) -> str:
    """E.g. `ends of turns: probability 0.912 at 120 ends, 0.003 elsewhere, calibration error 0.004`."""
    elsewhere = "" if ends.elsewhere is None else f", {ends.elsewhere:.3f} elsewhere"
    return (
        f"ends of turns: probability {ends.at_ends:.3f} at {ends.num_ends:,} ends{elsewhere}, calibration error"
        f" {ends.error:.3f}"
    )


def _numbers(slices: list[LossSlice] | tuple[LossSlice | None, ...]) -> list[str]:
    return [
        text
        for each in slices
        for text in (("-", "-") if each is None else (f"{each.loss:.4f}", f"{each.token_accuracy:.0%}"))
    ]
