"""The trials of a search as a table: while it runs, in their order; when it has ended, the best first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from components.training.records import TrialHistory, TrialState

COLORS: dict[TrialState, str] = {"running": "cyan", "completed": "green", "stopped": "yellow", "failed": "red"}


def ranked(histories: Iterable[TrialHistory]) -> list[TrialHistory]:
    """Best eval loss first; trials that have none yet come after them, and failed ones last."""
    return sorted(
        histories, key=lambda history: (history.state == "failed", best_loss(history), history.started.number)
    )


def best_loss(history: TrialHistory) -> float:
    """Nats per target of the best checkpoint; infinity where there is none."""
    return history.best.eval_loss if history.best else math.inf


def leaderboard(histories: Iterable[TrialHistory], *, budget: int) -> Table:
    """One line per trial, in the order given. `budget` is in target tokens."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("hyperparameters", min_width=24)
    for name in ("target tokens", "eval loss", "worker s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for history in histories:
        table.add_row(*_row(history, budget))
    return table


def hyperparameters(varied: Mapping[str, object]) -> str:
    """What the search drew, short: the last word of each path and three digits of each number."""
    return "  ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in varied.items())


def worker_seconds(history: TrialHistory) -> float:
    """Training time times workers: GPU-seconds where a worker is a GPU."""
    return history.reports[-1].worker_seconds if history.reports else 0.0


def _row(history: TrialHistory, budget: int) -> list[str | Text]:
    last = history.reports[-1] if history.reports else None
    spent = last.target_tokens if last else 0
    method = history.started.spec.method
    name = "qlora" if method.kind == "lora" and method.quantize else method.kind
    branch = history.started.branch
    return [
        str(history.started.number),
        name if branch == name else f"{name} ({branch})",
        hyperparameters(history.started.varied),
        f"{spent:,} ({min(spent / budget, 1):.0%})",
        f"{best_loss(history):.4f}" if history.best else "-",
        f"{worker_seconds(history):.0f}",
        Text(history.state, style=COLORS[history.state]),
    ]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
