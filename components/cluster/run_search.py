"""Runs the trials of a search on a Ray cluster, or resumes them. Every event is recorded in the trials' histories."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from ray import tune
from ray.tune import TuneError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

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
from components.cluster.ray_session import max_pending_trials
from components.cluster.scheduling.manual_stopper import ControlledStopper
from components.cluster.scheduling.scheduler import make_scheduler, pending_trials
from components.cluster.scheduling.tune_search import parameter_space, search_algorithm
from components.cluster.slots.command_board import CommandBoard
from components.cluster.slots.search_context import SearchContext
from components.cluster.slots.trainable import Slot
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.report_marks import report_marks
from components.experiment.space import num_trials
from components.records.budget_rule import BudgetRule
from components.records.commands import RequestInbox
from components.records.histories import TrialHistories
from components.records.slot_clock import SlotClock
from components.records.stop_flag import StopRequest
from components.storage.folder import Folder
from components.training.workers import UnfitWorkersError

TUNE_FOLDER = "tune"


def run_search(
    context: SearchContext,
    histories: TrialHistories,
    *,
    resume: bool,
    inbox: RequestInbox | None = None,
    stop: StopRequest | None = None,
    running_seconds: Callable[[], float] = time.monotonic,
    last_sign: float = 0.0,
) -> str | None:
    """Blocks until every trial has ended, or a stop request has ended the search. Works in any thread.

    Returns the limit of search.budget that kept trials from starting or ended them; None if none did.

    Ray must be connected. Raises UnfitWorkersError, all trials having ended, if none can succeed on these machines; and what
    a subscriber of the histories raises, e.g. StorageError.

    Args:
        histories: what the journal knows already; empty for a new search. Every event is recorded here, in this thread:
            the journal must have subscribed.
        resume: continue the search whose state is in context.folder.
        inbox: requests about trials, looked at between two steps of Tune's loop.
        stop: a request ends the search early; it can be resumed.
        running_seconds: how long drivers of this search have been running.
        last_sign: of the driver before this one, in Unix seconds.
    """
    _quiet_libraries()
    keep_keys_here()
    board = _make_board(histories)
    gauges, retention = TrialGauges(context.search_id, histories), CheckpointRetention(context, histories)
    clock = SlotClock()
    clock.resume(list(histories.values()), last_sign)
    spending = _spending(context, histories, clock, running_seconds)
    controller = TrialController(context, board, histories, gauges, inbox, clock, spending)
    with histories.subscribed(gauges.update, retention.update), attached(controller):
        try:
            controller.confirm_finalists()  # an earlier driver may have ended just before it asked for them
            _fit(_make_tuner(context, board, resume=resume), context, board, stop or StopRequest())
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


def can_resume(folder: Folder) -> bool:
    """Whether a search in this folder has begun to save its state."""
    return bool(tune.Tuner.can_restore(str(folder / TUNE_FOLDER)))


def _quiet_libraries() -> None:
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.ERROR)  # it warns of packages that it could do without


def _make_board(histories: TrialHistories) -> Any:
    """On the driver's own node, so that it lives as long as the driver: any other node may be a spot instance."""
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(CommandBoard).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=driver_node)
    return board.remote(
        extensions={trial_id: history.extensions for trial_id, history in histories.items()},
        stop_requests=[trial_id for trial_id, history in histories.items() if history.stop is not None],
    )


def _make_tuner(context: SearchContext, board: Any, *, resume: bool) -> tune.Tuner:
    experiment = context.experiment

    def placement(config: dict[str, Any]) -> SlotPlacement:
        workers = experiment.resources.of(TrialConfig.of(config).spec.method)
        return SlotPlacement(workers, workers.min_workers)  # the scheduler gives elastic trials more

    trainable = tune.with_resources(tune.with_parameters(Slot, context=context, board=board), placement)
    if resume:
        return tune.Tuner.restore(str(context.folder / TUNE_FOLDER), trainable, resume_unfinished=True)
    return tune.Tuner(
        trainable,
        param_space=parameter_space(experiment),
        tune_config=tune.TuneConfig(
            scheduler=make_scheduler(experiment, context.budget, context.search_id),
            search_alg=search_algorithm(experiment, context.budget, context.search_id, context.earlier_trials),
            num_samples=num_trials(experiment) if experiment.search.learns else 1,
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name=TUNE_FOLDER,
            storage_path=str(context.folder),
            failure_config=tune.FailureConfig(max_failures=experiment.search.max_failures),
            # All are kept: they are pointers, and the saved state of a killed driver may know only an old one.
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
            callbacks=[TrialEventCallback(context.search_id)],
            stop=ControlledStopper(context.search_id),
            verbose=0,
        ),
    )


def _fit(tuner: tune.Tuner, context: SearchContext, board: Any, stop: StopRequest) -> None:
    pending, interrupt = pending_trials(context.experiment, capacity_of_cluster()), threading.Event()
    with max_pending_trials(pending), interruptible(interrupt), GracefulShutdown(board, stop, interrupt):
        tuner.fit()
