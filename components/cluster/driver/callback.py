"""Tune's events, told as TrialEvents in the driver, and the checkpoints that nobody needs any more."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback

from components.cluster.driver.checkpoint_retention import CheckpointRetention, _listeners
from components.cluster.driver.trial_control import controller_of
from components.cluster.slots.context import origin_of, trial_of
from components.records.events import (
    Progress,
    TrialEnded,
    TrialProgressed,
    TrialStarted,
    TrialState,
)


class TrialEventCallback(Callback):  # type: ignore[misc]
    """Emits first (the journal is written there), and only then forgets checkpoints."""

    def __init__(self, search_id: str) -> None:
        self.search_id = search_id

    @property
    def listener(self) -> CheckpointRetention:
        return _listeners[self.search_id]

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        controller_of(self.search_id).serve(trial.trial_id for trial in trials)

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
                controller_of(self.search_id).hopeless = failure
            self._end(trial, "failed", failure)
            return
        progress = result.get("progress")
        if progress and progress["diverged"]:
            self._end(trial, "failed", progress["diverged"])
        elif progress and progress["done"]:
            self._end(trial, "completed", "")
        else:
            director = controller_of(self.search_id)
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
