"""Rows of bars over one time axis, as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class TimelineBar:
    """From `began` to `ended`, in seconds, drawn by repeating `mark`."""

    began: float
    ended: float
    mark: str


@dataclass(frozen=True, kw_only=True)
class TimelineRow:
    label: str
    bars: tuple[TimelineBar, ...]


def timeline_text(rows: Sequence[TimelineRow], width: int = WIDTH) -> str:
    """The axis begins with the first bar. Every bar has at least one character; later bars cover earlier ones."""
    bars = [bar for row in rows for bar in row.bars]
    if not bars:
        return ""
    began, ended = min(bar.began for bar in bars), max(bar.ended for bar in bars)
    seconds_per_character = max(ended - began, 1e-9) / (width - 1)
    margin = max(len(row.label) for row in rows) + 2
    right = f"{ended - began:.0f} s"
    lines = [" " * margin + "0 s" + right.rjust(width - 3)]
    for row in rows:
        line = [" "] * width
        for bar in row.bars:
            first = round((bar.began - began) / seconds_per_character)
            last = max(first, round((bar.ended - began) / seconds_per_character) - 1)
            for position in range(first, last + 1):
                line[position] = bar.mark[(position - first) % len(bar.mark)]
        lines.append(f"{row.label.ljust(margin)}{''.join(line).rstrip()}")
    return "\n".join(lines)
