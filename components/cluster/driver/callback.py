"""Tune's events, told as TrialEvents in the driver, and the checkpoints that nobody needs any more."""

from __future__ import annotations

import time
from typing import Any

from ray.tune import Callback

from components.cluster.driver.checkpoint_retention import CheckpointRetention, _listeners
from components.cluster.driver.trial_control import controller_of
from components.cluster.slots.slot_result import SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import (
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
        config = TrialConfig.of(trial)
        self.listener.emit(
            TrialStarted(
                trial_id=trial.trial_id,
                number=config.number,
                branch=config.branch,
                spec=config.spec,
                workers=trial.placement_group_factory.count,
                varied=config.varied,
                parent=config.parent,
                warm_from=config.warm_from,
                time=time.time(),
            )
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if trial.trial_id in self.listener.context.ended:
            return
        outcome = SlotResult.of(result)
        if (progress := outcome.report) is None:
            return
        self.listener.emit(
            TrialProgressed(
                trial_id=trial.trial_id,
                progress=progress,
                slot=outcome.slot,
                node=outcome.node,
                time=time.time(),
            )
        )
        self.listener.collect(trial.trial_id, progress)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        result = SlotResult.of(trial.last_result) if trial.last_result else None
        report = result.report if result is not None else None
        if result is not None and result.failure is not None:
            if result.ends_search:
                controller_of(self.search_id).hopeless = result.failure
            self._end(trial, "failed", result.failure)
        elif report is not None and report.diverged:
            self._end(trial, "failed", report.diverged)
        elif report is not None and report.done:
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
