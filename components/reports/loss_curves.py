"""Eval loss over target tokens, one line per trial, as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable

from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from components.conversations.target_bytes import BITS_PER_BYTE
from components.records.events import TARGET_TOKENS, TrialHistory, TrialState
from components.reports.leaderboard import counted

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink")


def loss_curves_svg(histories: Iterable[TrialHistory], *, base_loss: float | None = None) -> str:
    """Returns an SVG. One color per branch; a cross marks a stopped trial. `base_loss` (nats per target) is a line.

    In a search over several base models the curves are bits per byte over target bytes, and there is no such line.
    """
    histories = list(histories)
    unit = counted(histories)
    by_bytes = unit != TARGET_TOKENS
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    branches = list(dict.fromkeys(history.started.branch for history in histories))
    for history in histories:
        color = COLORS[branches.index(history.started.branch) % len(COLORS)]
        tokens = [report.target_tokens for report in history.reports]
        losses = [
            report.scores.get(BITS_PER_BYTE, math.nan) if by_bytes else report.eval_loss for report in history.reports
        ]
        axes.plot(tokens, losses, color=color, marker=".", alpha=0.8)
        if tokens:
            axes.annotate(f" {history.started.number}", (tokens[-1], losses[-1]), fontsize=8, color=color)
        if tokens and history.state is TrialState.STOPPED:
            axes.plot(tokens[-1], losses[-1], color=color, marker="x", markersize=9)
    for position, branch in enumerate(branches):
        axes.plot([], [], color=COLORS[position % len(COLORS)], label=branch)
    if base_loss is not None and not by_bytes:
        axes.axhline(base_loss, color="gray", linestyle="--", label="base model")
    axes.set(xlabel=f"{unit} trained on", ylabel=f"eval loss ({'bits per byte' if by_bytes else 'nats per target'})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    picture = io.StringIO()
    FigureCanvasSVG(figure).print_svg(picture)
    return picture.getvalue()
