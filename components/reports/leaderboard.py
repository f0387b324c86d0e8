"""The trials of a search as a table: in the order of their start while it runs, ranked when it has ended."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from components.conversations.target_bytes import BITS_PER_BYTE
from components.experiment.spec import EVAL_LOSS, GENERAL_LOSS, MetricSpec
from components.experiment.varied import hyperparameters
from components.records.events import NO_STANDING, TARGET_TOKENS, RungEvaluation, TrialHistory, TrialState
from components.records.objectives import pareto_front

COLORS: dict[TrialState, str] = {
    TrialState.RUNNING: "cyan",
    TrialState.COMPLETED: "green",
    TrialState.STOPPED: "yellow",
    TrialState.FAILED: "red",
}


def ranked(histories: Iterable[TrialHistory]) -> list[TrialHistory]:
    """Sorts by the metric of the search, then by eval loss; trials without a report come later, and failed ones last."""
    return sorted(
        histories, key=lambda history: (history.state is TrialState.FAILED, standing(history), history.started.number)
    )


def standing(history: TrialHistory) -> tuple[float, float]:
    """Returns what ranks the trial, of its best checkpoint: less is better; infinity where there is none."""
    return history.best.standing if history.best else NO_STANDING


def best_loss(history: TrialHistory) -> float:
    """Returns the eval loss of the best checkpoint in nats per target; infinity where there is none."""
    return history.best.eval_loss if history.best else math.inf


def last_rung(history: TrialHistory) -> RungEvaluation | None:
    """Returns what decided the last rung of a trial that has no best checkpoint, if that was a sample."""
    found = [report.rung for report in history.reports if report.rung is not None]
    return found[-1] if found and not history.best else None


def general_loss(history: TrialHistory) -> float | None:
    """Returns the loss on general text at the end of the trial's budget, if it was measured and is finite.

    In nats per token, or in bits per byte if there are several base models.
    """
    found = [report.scores[GENERAL_LOSS] for report in history.reports if GENERAL_LOSS in report.scores]
    return found[-1] if found and math.isfinite(found[-1]) else None


def leaderboard(
    histories: Iterable[TrialHistory],
    *,
    budget: int,
    metrics: Sequence[str] = (),
    among: Sequence[TrialHistory] | None = None,
) -> Table:
    """One line per trial, in the order given.

    Args:
        budget: of a trial without extensions, in target tokens.
        metrics: those of `search.metrics`; trials on their Pareto front have a mark.
        among: all trials, where some of them are not shown.
    """
    histories = list(histories)
    everyone = histories if among is None else among
    front = pareto_front(everyone, metrics, budget)
    numbers = {history.trial_id: history.started.number for history in everyone}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right", no_wrap=True)
    table.add_column("method", no_wrap=True)
    table.add_column("hyperparameters", min_width=24)
    beside = columns_beside(histories)
    has_general = any(general_loss(history) is not None for history in histories)
    general = ["general"] if has_general else []
    for name in (counted(histories), *(metric.title for metric in beside), "eval loss", *general, "worker s"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    if metrics:
        table.add_column("front", justify="center", no_wrap=True)
    remarks = [front_sentence(metrics) if metrics else "", sample_sentence(histories)]
    table.caption, table.caption_justify = "\n".join(filter(None, remarks)) or None, "left"
    for history in histories:
        mark = ["*" if history.trial_id in front else ""] if metrics else []
        table.add_row(*_row(history, budget, numbers, beside, has_general=has_general), *mark)
    return table


def metric_of(histories: Iterable[TrialHistory]) -> MetricSpec:
    """Returns what the search goes by, as its reports say."""
    return next((report.metric for history in histories for report in history.reports), MetricSpec())


def columns_beside(histories: Sequence[TrialHistory]) -> list[MetricSpec]:
    """Returns the metrics that stand beside the loss: the search's own, and bits per byte if there are several bases."""
    several = [MetricSpec(name=BITS_PER_BYTE)] if counted(histories) != TARGET_TOKENS else []
    return [metric for metric in dict.fromkeys([metric_of(histories), *several]) if metric.name != EVAL_LOSS]


def best_value(history: TrialHistory, metric: MetricSpec) -> str:
    """Returns the metric of the best checkpoint, as text; `~` and that of its last rung's sample, `-` where there is none."""
    sampled = last_rung(history)
    measured = history.best or sampled
    if measured is None:
        return "-"
    values = {EVAL_LOSS: measured.eval_loss, **measured.scores}
    return f"{'~' if sampled else ''}{values[metric.name]:.4f}" if metric.name in values else "-"


def front_sentence(metrics: Sequence[str]) -> str:
    """Says what the front is, and what is registered all the same."""
    return (
        f"front: no other trial is at least as good in {' and '.join(metrics)}; the champion is chosen by {metrics[0]}."
        " Seconds of stopped trials are projected to the whole budget"
    )


def sample_sentence(histories: Iterable[TrialHistory]) -> str:
    """Says what `~` is, if any trial has it."""
    size = next((sampled.conversations for history in histories if (sampled := last_rung(history))), None)
    return "" if size is None else f"~ over the {size} held-out conversations that decide rungs"


def worker_seconds(history: TrialHistory) -> float:
    """Returns the time of training and evaluation times workers: GPU-seconds where a worker is a GPU."""
    return history.last.all_worker_seconds if history.last else 0.0


def spent(history: TrialHistory) -> int:
    """Returns how many target tokens a trial has trained on, or target bytes where they count."""
    return history.last.target_tokens if history.last else 0


def share_spent(history: TrialHistory, budget: int) -> str:
    """The share of its own budget that a trial has spent; for an extended trial, the budget too."""
    own = history.budget(budget)
    return f"{min(spent(history) / own, 1):.0%}" + (f" of {own:,}" if own != budget else "")


def origin(history: TrialHistory, numbers: Mapping[str, int]) -> str:
    """`clone of 3`, `warm clone of 3` with its parent's weights, `repeat of 3`; empty for a trial that the search sampled."""
    if history.started.parent is None:
        return ""
    kind = "repeat" if history.started.repeat else "warm clone" if history.started.warm_from else "clone"
    return f"{kind} of {numbers.get(history.started.parent, history.started.parent)}"


def counted(histories: Iterable[TrialHistory]) -> str:
    """Returns what budgets count: target tokens, or target bytes in a search over several base models."""
    return next((history.last.counted for history in histories if history.last), TARGET_TOKENS)


def in_bits(history: TrialHistory) -> float | None:
    """Returns the eval loss of the best checkpoint in bits per byte, which compares between base models."""
    return history.best.scores.get(BITS_PER_BYTE) if history.best else None


def _row(
    history: TrialHistory, budget: int, numbers: Mapping[str, int], beside: Sequence[MetricSpec], *, has_general: bool
) -> list[str | Text]:
    general = general_loss(history)
    method = history.started.spec.method
    name = "qlora" if method.kind == "lora" and method.quantize else method.kind
    branch = history.started.branch if history.started.branch != name else ""
    rows = "" if history.max_rows is None else f"{history.max_rows} rows at once for memory"
    remarks = ", ".join(filter(None, [branch, origin(history, numbers), rows]))
    return [
        str(history.started.number),
        f"{name} ({remarks})" if remarks else name,
        hyperparameters(history.started.varied),
        f"{spent(history):,} ({share_spent(history, budget)})",
        *(best_value(history, metric) for metric in beside),
        best_value(history, MetricSpec()),
        *(["-" if general is None else f"{general:.3f}"] if has_general else []),
        f"{worker_seconds(history):.0f}",
        Text(history.state, style=COLORS[history.state]),
    ]
