"""Runs the trials of a search on a Ray cluster. Every event is recorded in the trials' histories.

A search is resumed from the journal and the checkpoints alone: each time Tune begins from nothing, in a scratch folder, and
its own state is neither read nor kept.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from ray import tune
from ray.tune import TuneError

from components.cluster.capacity.autoscaler_config import capacity_of_cluster
from components.cluster.capacity.placement import SlotPlacement
from components.cluster.driver.callback import TrialEventCallback
from components.cluster.driver.checkpoint_retention import CheckpointRetention
from components.cluster.driver.gauges import TrialGauges
from components.cluster.driver.shutdown import GracefulShutdown
from components.cluster.driver.spending import Spending
from components.cluster.driver.trial_control import TrialController, attached
from components.cluster.ray_internals.tune import keep_keys_here
from components.cluster.ray_internals.tune_loop import interruptible
from components.cluster.ray_session import tune_limits
from components.cluster.scheduling.manual_stopper import ControlledStopper
from components.cluster.scheduling.overdue_ends import overdue_ends
from components.cluster.scheduling.scheduler import ending_rules, make_scheduler, pending_trials
from components.cluster.scheduling.tune_search import search_algorithm
from components.cluster.slots.hang_watch import HangRule
from components.cluster.slots.known_trials import KnownTrials
from components.cluster.slots.restartable_board import running_board
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.trainable import Slot
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.report_marks import report_marks
from components.experiment.shared_slots import kind_of
from components.experiment.spec import TrialSpec
from components.records.budget_rule import BudgetRule
from components.records.commands import RequestInbox
from components.records.disk_use import DiskUse
from components.records.events import TrialState
from components.records.histories import TrialHistories
from components.records.slot_clock import SlotClock
from components.records.stop_flag import StopRequest
from components.training.workers import UnfitWorkersError


def run_search(
    context: SearchContext,
    histories: TrialHistories,
    *,
    inbox: RequestInbox | None = None,
    stop: StopRequest | None = None,
    running_seconds: Callable[[], float] = time.monotonic,
    last_sign: float = 0.0,
    disk: DiskUse | None = None,
    hangs: HangRule | None = None,
) -> str | None:
    """Blocks until every trial has ended, or a stop request has ended the search. Works in any thread.

    What the journal has of the search is not done again: its trials go on where it ends.

    Returns the limit of search.budget that kept trials from starting or ended them; None if none did.

    Ray must be connected. Raises UnfitWorkersError, all trials having ended, if none can succeed on these machines; and what
    a subscriber of the histories raises, e.g. StorageError.

    Args:
        histories: what the journal knows already; empty for a new search. Every event is recorded here, in this thread:
            the journal must have subscribed.
        inbox: requests about trials, looked at between two steps of Tune's loop.
        stop: a request ends the search early; it can be resumed.
        running_seconds: how long drivers of this search have been running.
        last_sign: of the driver before this one, in Unix seconds.
        disk: what the search keeps at most, as far as nobody asks for clones; without it clones may take any room.
        hangs: from when on workers are taken to hang.
    """
    _quiet_libraries()
    keep_keys_here()
    gauges, retention = TrialGauges(context.search_id, histories), CheckpointRetention(context, histories)
    clock = SlotClock()

    def trials_at_once(trial: TrialSpec) -> int:
        return context.experiment.workers_of(trial.method).trials_at_once

    clock.resume(list(histories.values()), last_sign, trials_at_once)
    spending = _spending(context, histories, clock, running_seconds)
    with running_board(KnownTrials.of(histories), context.folder, hangs or HangRule()) as board:
        controller = TrialController(context, board, histories, gauges, inbox, clock, spending, disk)
        with histories.subscribed(gauges.update, retention.update), attached(controller):
            try:
                _end_what_is_overdue(context, controller)
                controller.confirm_finalists()  # an earlier driver may have ended just before it asked for them
                _fit(context, controller, stop or StopRequest())
            except TuneError:
                if histories.error is not None:
                    raise histories.error from None
                raise
            if controller.fatal_error is not None:
                controller.end_running_trials()
    retention.prune_late()
    if controller.fatal_error is not None:
        raise UnfitWorkersError(controller.fatal_error)
    return None if spending is None else spending.exhausted() or next(iter(spending.refused.values()), None)


def _spending(
    context: SearchContext, histories: TrialHistories, clock: SlotClock, running_seconds: Callable[[], float]
) -> Spending | None:
    experiment, limits = context.experiment, context.experiment.search.budget
    if limits is None:
        return None
    marks = report_marks(context.budget, experiment.trial.budget.evaluations, context.rungs)
    rule = BudgetRule(limits=limits, first_report=marks[0], prices=context.dollars_per_worker_hour)
    return Spending(rule, histories, clock, running_seconds)


def _end_what_is_overdue(context: SearchContext, controller: TrialController) -> None:
    """Records the ends that an earlier driver had decided on, and did not live to record."""
    rules = ending_rules(context.experiment, context.budget)
    held = lambda trial_id: controller.clock.take(trial_id, ends=True)  # noqa: E731
    for end in list(overdue_ends(controller.histories, rules, now=time.time(), held=held)):
        controller.histories.record(end)


def _quiet_libraries() -> None:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)  # it warns of packages that it could do without


def _fit(context: SearchContext, controller: TrialController, stop: StopRequest) -> None:
    pending, interrupt = pending_trials(context.experiment, capacity_of_cluster()), threading.Event()
    with (
        tempfile.TemporaryDirectory(prefix="turnwise-tune-", ignore_cleanup_errors=True) as scratch,
        tune_limits(pending=pending, slots_wait=context.experiment.search.trials_per_slot > 1),
        interruptible(interrupt),
        GracefulShutdown(controller.board, stop, interrupt),
    ):
        _make_tuner(context, controller, scratch).fit()


def _make_tuner(context: SearchContext, controller: TrialController, scratch: str) -> tune.Tuner:
    experiment, histories = context.experiment, controller.histories

    def placement(config: dict[str, Any]) -> SlotPlacement:
        trial = TrialConfig.of(config)
        workers = experiment.workers_of(trial.spec.method)
        kind = "" if workers.trials_at_once == 1 else kind_of(context.base_of(trial.branch).model, trial.spec)
        return SlotPlacement(workers, workers.min_workers, kind)  # the scheduler gives elastic trials more

    ended = [history for history in histories.values() if history.state is not TrialState.RUNNING]
    drawn = [history for history in ended if history.started.parent is None]
    trainable = tune.with_parameters(Slot, context=context, board=controller.board)
    return tune.Tuner(
        tune.with_resources(trainable, placement),
        tune_config=tune.TuneConfig(
            scheduler=make_scheduler(experiment, context.budget, context.search_id, ended=len(drawn)),
            search_alg=search_algorithm(experiment, context.budget, context.search_id, context.earlier_trials),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=context.search_id,
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=experiment.search.max_failures),
            # Tune keeps nothing that is needed: the workers write the checkpoints, and the journal knows them.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[TrialEventCallback(context.search_id)],
            stop=ControlledStopper(context.search_id),
            verbose=0,
        ),
    )
