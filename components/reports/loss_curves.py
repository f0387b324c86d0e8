"""Eval loss over target tokens, one line per trial, as a picture."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray

from components.conversations.target_bytes import BITS_PER_BYTE
from components.records.events import TARGET_TOKENS, TrialHistory, TrialState
from components.reports.leaderboard import counted, ranked

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:pink")
MANY, LABELLED = 100, 20  # trials
MOST_POINTS = 100  # of a trial


def loss_curves_svg(histories: Iterable[TrialHistory], *, base_loss: float | None = None) -> str:
    """Returns an SVG. One color per branch; a cross marks a stopped trial. `base_loss` (nats per target) is a line.

    Evaluations of a sample, at rungs, are left out.

    Of MANY trials and more, each report has no mark of its own, and only the best LABELLED have their numbers beside them.

    In a search over several base models the curves are bits per byte over target bytes, and there is no such line.
    """
    histories = list(histories)
    unit = counted(histories)
    by_bytes = unit != TARGET_TOKENS
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    branches = list(dict.fromkeys(history.started.branch for history in histories))
    many = len(histories) >= MANY
    labelled = ranked(histories)[:LABELLED] if many else histories
    curves_by_trial = {history.trial_id: _curve(history, by_bytes) for history in histories}
    for position, branch in enumerate(branches):
        color = COLORS[position % len(COLORS)]
        curves = [curves_by_trial[history.trial_id] for history in histories if history.started.branch == branch]
        if many:
            # As one line with gaps: each object of its own costs a millisecond.
            axes.plot(*_joined(curves), color=color, alpha=0.4, linewidth=0.7, marker=None)
        else:
            for curve in curves:
                axes.plot(*curve.points, color=color, marker=".", alpha=0.8)
        stopped = [curve.points[:, -1] for curve in curves if curve.stopped and curve.points.size]
        if stopped:
            axes.plot(*np.stack(stopped, axis=1), color=color, linestyle="", marker="x", markersize=4 if many else 9)
        axes.plot([], [], color=color, label=branch)
    for history in labelled:
        points = curves_by_trial[history.trial_id].points
        if points.size:
            color = COLORS[branches.index(history.started.branch) % len(COLORS)]
            axes.annotate(f" {history.started.number}", (points[0, -1], points[1, -1]), fontsize=8, color=color)
    if base_loss is not None and not by_bytes:
        axes.axhline(base_loss, color="gray", linestyle="--", label="base model")
    axes.set(xlabel=f"{unit} trained on", ylabel=f"eval loss ({'bits per byte' if by_bytes else 'nats per target'})")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper right" if many else "best")  # the best place is found by looking at every point
    picture = io.StringIO()
    FigureCanvasSVG(figure).print_svg(picture)
    return picture.getvalue()


@dataclass(frozen=True, slots=True)
class _Curve:
    """`points`: target tokens and losses, (2, reports)."""

    points: NDArray[np.float64]
    stopped: bool


def _curve(history: TrialHistory, by_bytes: bool) -> _Curve:
    reports = [report for report in history.reports if not report.is_sampled]
    losses = [report.scores.get(BITS_PER_BYTE, math.nan) if by_bytes else report.eval_loss for report in reports]
    points = np.array([[report.target_tokens for report in reports], losses], dtype=float)
    every = -(-max(points.shape[1] - 1, 1) // MOST_POINTS)  # more than a picture of this width can show
    kept = [*range(0, points.shape[1] - 1, every), *([points.shape[1] - 1] if points.size else [])]
    return _Curve(points[:, kept], history.state is TrialState.STOPPED)


def _joined(curves: Iterable[_Curve]) -> NDArray[np.float64]:
    gap = np.full((2, 1), np.nan)
    return np.concatenate([part for curve in curves for part in (curve.points, gap)], axis=1)
