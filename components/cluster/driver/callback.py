"""Tune's events, recorded as TrialEvents in the trials' histories."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from components.cluster.driver.trial_control import TrialController, controller_of
from components.cluster.slots.slot_result import KEY, SlotResult
from components.cluster.slots.trial_config import TrialConfig
from components.records.events import Progress, TrialEnded, TrialEvent, TrialProgressed, TrialStarted, TrialState
from components.storage.retry import StorageError

log = logging.getLogger(__name__)


class TrialEventCallback(Callback):  # type: ignore[misc]
    """Tune pickles it: it knows the search's id only."""

    def __init__(self, search_id: str) -> None:
        self.search_id = search_id

    @property
    def controller(self) -> TrialController:
        return controller_of(self.search_id)

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        if (error := self.controller.histories.error) is not None:
            raise error
        self.controller.gauges.refresh()
        if self.controller.disk_watch is not None:
            self.controller.disk_watch.look()
        for trial in trials:
            if trial.status == Trial.PENDING:
                self.controller.clock.leaves(trial.trial_id)
        self.controller.process_requests()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        config = TrialConfig.of(trial)
        placement = trial.placement_group_factory
        self.controller.clock.starts(trial.trial_id, placement.count / placement.workers.trials_at_once)
        self._record(
            TrialStarted(
                trial_id=trial.trial_id,
                number=config.number,
                branch=config.branch,
                spec=config.spec,
                workers=placement.count,
                varied=config.varied,
                parent=config.parent,
                warm_from=config.warm_from,
                repeat=config.repeat,
                drawn_after=config.drawn_after,
                time=time.time(),
            )
        )

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        outcome, known = SlotResult.of(result), self.controller.histories[trial.trial_id].reports
        progress = outcome.report
        if progress is None or any(report.step == progress.step and not progress.diverged for report in known):
            return  # the journal has it
        self._say_fewer_rows(trial.trial_id, progress)
        recorded = self._record(
            TrialProgressed(
                trial_id=trial.trial_id,
                progress=progress,
                slot=outcome.slot,
                node=outcome.node,
                device=outcome.device,
                held=self.controller.clock.take(trial.trial_id),
                restarts=outcome.restarts,
                time=time.time(),
            )
        )
        if recorded:
            self.controller.board.note_report.remote(trial.trial_id, progress.step)

    def _say_fewer_rows(self, trial_id: str, progress: Progress) -> None:
        history = self.controller.histories[trial_id]
        if progress.max_rows is not None and progress.max_rows != history.max_rows:
            log.warning(
                "trial %d ran out of memory: it goes on with at most %d rows in a micro-batch, and the same rows in a step",
                history.started.number,
                progress.max_rows,
            )

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if trial.trial_id not in self.controller.histories:
            return  # the budget of the search has not let it start
        # A trial that is stopped before its first step has a result of Tune's own.
        result = SlotResult.of(trial.last_result) if KEY in (trial.last_result or {}) else None
        report = result.report if result is not None else None
        if result is not None and result.failure is not None:
            if result.ends_search:
                self.controller.fatal_error = result.failure
            self._end(trial, TrialState.FAILED, result.failure, impossible=result.is_impossible)
        elif report is not None and report.diverged:
            self._end(trial, TrialState.FAILED, report.diverged, impossible=True)
        elif report is not None and report.done:
            self._end(trial, TrialState.COMPLETED, "")
        else:
            stop = self.controller.stop_of(trial.trial_id)
            self._end(trial, TrialState.STOPPED, stop.sentence if stop else self.controller.reason_of(trial.trial_id))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number = TrialConfig.of(trial).number
        log.warning("trial %d lost its slot (%s), and goes on in another one", number, _why_lost(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Its slot or its node was lost, for what is a trial's own fault is a result. The search may go on with it."""
        if trial.trial_id in self.controller.starts_again:
            self.controller.starts_again.remove(trial.trial_id)
            return
        if trial.trial_id not in self.controller.histories:
            return  # it had no slot yet
        self._end(trial, TrialState.FAILED, f"lost its slot: {_why_lost(trial)}")

    def _end(self, trial: Any, state: TrialState, reason: str, *, impossible: bool = False) -> None:
        controller, trial_id = self.controller, trial.trial_id
        held = controller.clock.take(trial_id, ends=True)
        recorded = self._record(
            TrialEnded(
                trial_id=trial_id, state=state, reason=reason, impossible=impossible, held=held, time=time.time()
            )
        )
        if recorded:
            controller.confirm_finalists()

    def _record(self, event: TrialEvent) -> bool:
        """Returns False where the storage takes nothing any more: the next step of Tune's loop raises that.

        Raised here, Tune would show a traceback and go on, as if only this trial had lost its slot.
        """
        try:
            self.controller.histories.record(event)
        except StorageError:
            return False
        return True


def _why_lost(trial: Any) -> str:
    """Of a process that is gone Ray says at length what may have ended it; an error of the slot's own is its last line."""
    error = Path(trial.error_file).read_text(encoding="utf-8").strip() if trial.error_file else ""
    last = error.splitlines()[-1] if error else ""
    return "its process or its node ended" if not last or last.startswith("The actor") else last
