"""What a search is doing at this moment: a table that renews itself; without a terminal, a line per event."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from components.conversations.target_bytes import BITS_PER_BYTE
from components.experiment.varied import hyperparameters
from components.records.events import (
    Progress,
    TrialEnded,
    TrialEvent,
    TrialHistory,
    TrialInstructed,
    TrialProgressed,
    TrialStarted,
    TrialState,
    num_clones,
)
from components.reports.leaderboard import leaderboard, origin, share_spent, standing

REFRESHES_PER_SECOND = 2
LINES_AROUND, LEAST_ROWS = 6, 12  # of the table


class LiveView:
    """Draws the trials of a search; `show` draws one event. A context manager: inside, the table is on the screen."""

    def __init__(
        self,
        console: Console,
        histories: Mapping[str, TrialHistory],
        *,
        planned: int,
        budget: int,
        began: float | None = None,
        metrics: Sequence[str] = (),
        remark: Callable[[], str] = str,
    ) -> None:
        """
        Args:
            histories: the present state of every trial; it is only read.
            planned: how many trials the search set out with; clones are added to them.
            budget: of each, in target tokens.
            began: Unix seconds from which time is counted; by default now.
            metrics: those of `search.metrics`.
            remark: what a person should know at this moment.
        """
        self.console, self.histories, self.budget, self.metrics = console, histories, budget, metrics
        self._planned, self._remark = planned, remark
        self._began = began or time.time()
        self._standings: dict[str, tuple[TrialHistory, tuple[float, float]]] = {}
        self._live = Live(
            console=console, get_renderable=self._renderable, refresh_per_second=REFRESHES_PER_SECOND, transient=True
        )

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    @property
    def planned(self) -> int:
        """How many trials there will be, clones included."""
        return self._planned + num_clones(self.histories.values())

    @property
    def elapsed(self) -> float:
        return max(0.0, time.time() - self._began)

    def show(self, event: TrialEvent) -> None:
        """Prints the event where there is no terminal; in a terminal the table renews itself. `histories` has it already."""
        if not self.console.is_terminal:
            self.console.print(self._line(event, self.histories[event.trial_id]), soft_wrap=True)

    def _renderable(self) -> RenderableType:
        histories = list(self.histories.values())
        remark, rows = self._remark(), self._shown(histories)
        rest = len(histories) - len(rows)
        return Group(
            Text(self._summary(histories), style="dim"),
            *([Text(remark)] if remark else []),
            leaderboard(rows, budget=self.budget, metrics=self.metrics, among=histories),
            *([Text(f"{rest} more trials have no room here; --watch --json has all", style="dim")] if rest else []),
        )

    def _shown(self, histories: list[TrialHistory]) -> list[TrialHistory]:
        """As many trials as the screen has lines for: a third of them are the best, then come those that began last."""
        room = max(self.console.height - LINES_AROUND, LEAST_ROWS)
        if len(histories) <= room:
            return histories
        chosen = {history.trial_id for history in heapq.nsmallest(room // 3, histories, key=self._standing)}
        running = [history for history in histories if history.state is TrialState.RUNNING]
        for history in [*reversed(running), *reversed(histories)]:
            if len(chosen) == room:
                break
            chosen.add(history.trial_id)
        return [history for history in histories if history.trial_id in chosen]

    def _standing(self, history: TrialHistory) -> tuple[float, float]:
        """Of a trial of which nothing is new it is known: every event makes a new history."""
        known = self._standings.get(history.trial_id)
        if known is None or known[0] is not history:
            known = self._standings[history.trial_id] = history, standing(history)
        return known[1]

    def _summary(self, histories: list[TrialHistory]) -> str:
        ended = sum(history.state is not TrialState.RUNNING for history in histories)
        best = min(histories, key=self._standing, default=None)
        leader = f", best so far trial {best.started.number}" if best and best.best else ""
        planned = self.planned
        minutes, seconds = divmod(int(self.elapsed), 60)
        return (
            f"{ended} of {planned} ended, {len(histories) - ended} running, {planned - len(histories)} waiting{leader}"
            f", {minutes}:{seconds:02}"
        )

    def _line(self, event: TrialEvent, history: TrialHistory) -> str:
        head = f"[{self.elapsed:5.0f} s] trial {history.started.number}/{self.planned} {history.started.branch}"
        match event:
            case TrialStarted():
                numbers = {trial_id: known.started.number for trial_id, known in self.histories.items()}
                about = [origin(history, numbers), hyperparameters(event.varied)]
                return f"{head} started: {', '.join(filter(None, about))}"
            case TrialProgressed(progress=progress):
                spent = f"{progress.target_tokens:,} {progress.counted} ({share_spent(history, self.budget)})"
                return (
                    f"{head} {spent}, train loss {progress.train_loss:.4f}, {_evaluated(progress)},"
                    f" {progress.tokens_per_second:.0f} tokens/s"
                )
            case TrialEnded(state=state, reason=reason):
                return f"{head} {state}" + (f": {reason}" if reason else "")
            case TrialInstructed():
                return f"{head} {event.sentence}"


def _evaluated(progress: Progress) -> str:
    """E.g. `eval loss 1.9779, chrf 31.2`; of a sample `eval loss ~1.9779 of 16 conversations`.

    Bits per byte say what nats say, unless there are several base models: then they are the metric.
    """
    loss, scores = f"eval loss {progress.eval_loss:.4f}", progress.scores
    if progress.is_sampled and progress.rung is not None:
        loss = f"eval loss ~{progress.rung.eval_loss:.4f} of {progress.rung.conversations} conversations"
        scores = progress.rung.scores
    aside = {BITS_PER_BYTE} - {progress.metric.name}
    return ", ".join([loss, *(f"{name} {value:.4g}" for name, value in scores.items() if name not in aside)])
