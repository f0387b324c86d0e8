"""Tune's events, told as TrialRecords in the driver, and the checkpoints that nobody needs any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune import Callback

from components.cluster.context import SearchContext, origin_of, trial_of
from components.cluster.directing import director_of
from components.storage.folder import folder_at
from components.training.checkpoint import OPTIMIZER_FILES, at_report
from components.training.records import (
    Progress,
    TrialEnded,
    TrialHistory,
    TrialProgressed,
    TrialRecord,
    TrialStarted,
    TrialState,
    best_report,
)

Emit = Callable[[TrialRecord], None]


class Listener:
    """Who is told in this process, and which checkpoints of each trial still stand."""

    def __init__(self, context: SearchContext, emit: Emit, histories: Mapping[str, TrialHistory]) -> None:
        self.context, self.emit = context, emit
        self.standing = {trial_id: _standing(history) for trial_id, history in histories.items()}
        self._ended: set[str] = set()

    def best(self, trial_id: str) -> Progress | None:
        return best_report(self.standing.get(trial_id, []))

    def collect(self, trial_id: str, latest: Progress) -> None:
        """Keeps a running trial's best checkpoint and its latest one; what lies before its latest report is no use.

        Where checkpoints lag the latest one may not have arrived, so the one before is as good as the latest.
        """
        if latest.checkpoint is None:
            return
        before = [report for report in self.standing.get(trial_id, []) if report.step != latest.step]
        self.standing[trial_id] = reports = [*before, latest]
        settled = max(before, key=lambda report: report.step, default=None) if self.context.folder.lags else latest
        if settled is None:
            return
        trial = self.context.checkpoints / trial_id
        for name in trial.names():
            if "+" in name and name < at_report(settled.step):
                (trial / name).remove()
        kept = (self.best(trial_id), settled, latest)
        pinned = director_of(self.context.search_id).pinned
        for report in reports:
            if report not in kept and report.checkpoint not in pinned:
                folder_at(str(report.checkpoint)).remove()
        self.standing[trial_id] = [report for report in reports if report in kept]

    def collect_ended(self, trial_id: str) -> None:
        """Keeps the weights of an ended trial's best checkpoint, and what clones need; it will not be resumed."""
        self._ended.add(trial_id)
        best = self.best(trial_id)
        kept = director_of(self.context.search_id).pinned | ({best.checkpoint} if best else set())
        trial = self.context.checkpoints / trial_id
        for folder in [trial / name for name in trial.names()]:  # those that were never finished are among them
            if str(folder) not in kept:
                folder.remove()
            else:
                folder.discard(OPTIMIZER_FILES)

    def collect_late(self) -> None:
        """Once no worker writes any more: what arrived after its trial had ended."""
        if self.context.folder.lags:
            for trial_id in self._ended:
                self.collect_ended(trial_id)


def _standing(history: TrialHistory) -> list[Progress]:
    """The reports whose checkpoints stand, or will when the trial, going on before them, comes to them again."""
    reports = [report for report in history.reports if report.checkpoint]
    whole = [report for report in reports if folder_at(str(report.checkpoint)).is_whole()]
    newest = whole[-1].step if whole else 0
    goes_on = history.state == "running" and any(folder_at(str(report.checkpoint)).lags for report in reports)
    return [*whole, *(report for report in reports if goes_on and report.step > newest)]


# Tune pickles its callbacks into the experiment's state; what listens in this process must stay out of that.
_listeners: dict[str, Listener] = {}


def listen(context: SearchContext, emit: Emit, histories: Mapping[str, TrialHistory]) -> Listener:
    _listeners[context.search_id] = Listener(context, emit, histories)
    return _listeners[context.search_id]


class Relay(Callback):  # type: ignore[misc]
    """Emits first (the journal is written there), and only then forgets checkpoints."""

    def __init__(self, search_id: str) -> None:
        self.search_id = search_id

    @property
    def listener(self) -> Listener:
        return _listeners[self.search_id]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        director_of(self.search_id).serve(trial.trial_id for trial in trials)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        context = self.listener.context
        if trial.trial_id in context.ended:
            return
        number, branch, varied, spec = trial_of(trial.config)
        parent, warm_from = origin_of(trial.config)
        self.listener.emit(
            TrialStarted(
                trial_id=trial.trial_id,
                number=number,
                branch=branch,
                spec=spec,
                workers=trial.placement_group_factory.count,
                varied=varied,
                parent=parent,
                warm_from=warm_from,
                time=time.time(),
            )
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if trial.trial_id in self.listener.context.ended or result.get("progress") is None:
            return
        progress = Progress.model_validate(result["progress"])
        self.listener.emit(
            TrialProgressed(
                trial_id=trial.trial_id,
                progress=progress,
                slot=result["slot"],
                node=result["node"],
                time=time.time(),
            )
        )
        self.listener.collect(trial.trial_id, progress)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = trial.last_result
        if failure := result.get("failed"):
            if result.get("ends_search"):
                director_of(self.search_id).hopeless = failure
            self._end(trial, "failed", failure)
            return
        progress = result.get("progress")
        if progress and progress["diverged"]:
            self._end(trial, "failed", progress["diverged"])
        elif progress and progress["done"]:
            self._end(trial, "completed", "")
        else:
            director = director_of(self.search_id)
            told = director.stop_of(trial.trial_id)
            why = told.sentence if told else director.hopeless or "the scheduler gave its place to others"
            self._end(trial, "stopped", why)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        self._end(trial, "failed", _last_line(str(error)) if error else "its slot died")

    def _end(self, trial: Any, state: TrialState, reason: str) -> None:
        if trial.trial_id in self.listener.context.ended:
            return
        self.listener.emit(TrialEnded(trial_id=trial.trial_id, state=state, reason=reason, time=time.time()))
        self.listener.collect_ended(trial.trial_id)


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
