"""The trials of a search as a table: in the order of their start while it runs, ranked when it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.table import Table
from rich.text import Text

from components.conversations.target_bytes import BITS_PER_BYTE
from components.experiment.varied import hyperparameters
from components.records.events import TrialHistory, TrialState

TARGET_TOKENS = "target tokens"  # of Progress.counted
COLORS: dict[TrialState, str] = {
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETED: "green",
    TrialState.STOPPED: "yellow",
    TrialState.FAILED: "red",
}


def ranked(histories: Iterable[TrialHistory]) -> list[TrialHistory]:
    """Sorts by the metric of the search; trials without a report come after the others, and failed ones last."""
    return sorted(
        histories, key=lambda history: (history.state is TrialState.FAILED, objective(history), history.started.number)
    )


def objective(history: TrialHistory) -> float:
    """Returns what ranks the trial, of its best checkpoint: less is better; infinity where there is none."""
    return history.best.objective if history.best else math.inf


def best_loss(history: TrialHistory) -> float:
    """Returns the eval loss of the best checkpoint in nats per target; infinity where there is none."""
    return history.best.eval_loss if history.best else math.inf


def leaderboard(histories: Iterable[TrialHistory], *, budget: int) -> Table:
    """One line per trial, in the order given. `budget` is that of a trial without extensions, in target tokens."""
    histories = list(histories)
    numbers = {history.trial_id: history.started.number for history in histories}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("hyperparameters", min_width=24)
    bits = counted(histories) != TARGET_TOKENS
    for name in (counted(histories), "eval loss", *(["bits per byte"] if bits else []), "worker s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for history in histories:
        table.add_row(*_row(history, budget, numbers, bits=bits))
    return table


def worker_seconds(history: TrialHistory) -> float:
    """Returns training time times workers: GPU-seconds where a worker is a GPU."""
    return history.reports[-1].worker_seconds if history.reports else 0.0


def spent(history: TrialHistory) -> int:
    """Returns how many target tokens a trial has trained on."""
    return history.last.target_tokens if history.last else 0


def share_spent(history: TrialHistory, budget: int) -> str:
    """The share of its own budget that a trial has spent; for an extended trial, the budget too."""
    own = history.budget(budget)
    return f"{min(spent(history) / own, 1):.0%}" + (f" of {own:,}" if own != budget else "")


def origin(history: TrialHistory, numbers: Mapping[str, int]) -> str:
    """`clone of 3` or, with its parent's weights, `warm clone of 3`; empty for a trial that the search sampled."""
    if history.started.parent is None:
        return ""
    warm = "warm " if history.started.warm_from else ""
    return f"{warm}clone of {numbers.get(history.started.parent, history.started.parent)}"


def counted(histories: Iterable[TrialHistory]) -> str:
    """Returns what budgets count: target tokens, or target bytes in a search over several base models."""
    return next((history.last.counted for history in histories if history.last), TARGET_TOKENS)


def in_bits(history: TrialHistory) -> float | None:
    """Returns the eval loss of the best checkpoint in bits per byte, which compares between base models."""
    return history.best.scores.get(BITS_PER_BYTE) if history.best else None


def _row(history: TrialHistory, budget: int, numbers: Mapping[str, int], *, bits: bool) -> list[str | Text]:
    method = history.started.spec.method
    name = "qlora" if method.kind == "lora" and method.quantize else method.kind
    branch = history.started.branch if history.started.branch != name else ""
    remarks = ", ".join(filter(None, [branch, origin(history, numbers)]))
    return [
        str(history.started.number),
        f"{name} ({remarks})" if remarks else name,
        hyperparameters(history.started.varied),
        f"{spent(history):,} ({share_spent(history, budget)})",
        f"{best_loss(history):.4f}" if history.best else "-",
        *([f"{loss:.4f}" if (loss := in_bits(history)) is not None else "-"] if bits else []),
        f"{worker_seconds(history):.0f}",
        Text(history.state, style=COLORS[history.state]),
    ]
