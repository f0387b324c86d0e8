"""Runs a search, or goes on with one that was interrupted. Every event leaves as a TrialEvent."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from components.cluster.capacity.autoscaler import capacity_of_cluster
from components.cluster.capacity.placement import SlotPlacement
from components.cluster.driver.callback import TrialEventCallback
from components.cluster.driver.checkpoint_retention import Emit, listen
from components.cluster.driver.shutdown import GracefulShutdown, Told
from components.cluster.driver.trial_control import TrialController, direct
from components.cluster.scheduling.scheduler import make_scheduler, pending_trials
from components.cluster.scheduling.search_space import parameter_space, search_algorithm
from components.cluster.scheduling.stopper import ControlledStopper
from components.cluster.slots.command_board import CommandBoard
from components.cluster.slots.context import SearchContext
from components.cluster.slots.trainable import Slot
from components.cluster.slots.trial_config import TrialConfig
from components.data.prepare import PreparedDataset
from components.experiment.space import num_trials
from components.records.commands import RequestInbox
from components.records.events import TrialHistory
from components.storage.base import Folder
from components.training.workers import UnfitWorkersError

TUNE_FOLDER = "tune"
PENDING = "TUNE_MAX_PENDING_TRIALS_PG"


def run_search(
    context: SearchContext,
    emit: Emit,
    *,
    histories: Mapping[str, TrialHistory],
    resume: bool,
    told: Told = lambda _: None,
    desk: RequestInbox | None = None,
) -> signal.Signals | None:
    """Blocks until every trial has ended, or a signal has ended the search (stopping.py): then returns that.

    Ray must be up. Raises UnfitWorkersError, all trials having ended, if none of them can succeed on these machines.

    Args:
        emit: told every TrialEvent, in this process, in order; it must not block for long.
        histories: what the journal knows already; empty for a new search.
        resume: go on with the search whose state lies in context.folder.
        told: hears at once, in another thread, of a signal that ends the search.
        desk: where people ask something of the search while it runs.
    """
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    logging.getLogger("optuna").setLevel(logging.WARNING)
    experiment = context.experiment
    targets_per_epoch = PreparedDataset.open(context.prepared).train.total_targets
    budget = experiment.trial.budget.in_target_tokens(targets_per_epoch)
    # On the driver's own node, so that it lives as long as the driver: any other node may be a spot instance.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = (
        ray.remote(CommandBoard)
        .options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)
        .remote(
            {trial_id: history.extensions for trial_id, history in histories.items()},
            [trial_id for trial_id, history in histories.items() if history.stop is not None],
        )
    )
    director = TrialController(context, board, emit, histories, desk, budget)
    direct(director)
    listener = listen(context, director.emit, histories)

    def placement(config: dict[str, Any]) -> SlotPlacement:
        workers = experiment.resources.of(TrialConfig.of(config).spec.method)
        return SlotPlacement(workers, workers.min_workers)  # the scheduler gives elastic trials more (elastic.py)

    trainable = tune.with_resources(tune.with_parameters(Slot, context=context, board=board), placement)
    if resume:
        tuner = tune.Tuner.restore(str(context.folder / TUNE_FOLDER), trainable, resume_unfinished=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=parameter_space(experiment),
            tune_config=tune.TuneConfig(
                scheduler=make_scheduler(experiment, budget, context.search_id),
                search_alg=search_algorithm(experiment, budget, context.search_id),
                num_samples=num_trials(experiment) if experiment.search.sampler == "tpe" else 1,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name=TUNE_FOLDER,
                storage_path=str(context.folder),
                failure_config=tune.FailureConfig(max_failures=experiment.search.max_failures),
                # All of them: they are pointers, and the state that a killed driver left may know only an old one.
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=1),
                callbacks=[TrialEventCallback(context.search_id)],
                stop=ControlledStopper(context.search_id),
                verbose=0,
            ),
        )
    with GracefulShutdown(board, told) as stop, _pending(pending_trials(experiment, capacity_of_cluster())):
        tuner.fit()
    listener.collect_late()
    if director.hopeless is not None:
        raise UnfitWorkersError(director.hopeless)
    return stop.signal


@contextlib.contextmanager
def _pending(trials: int) -> Iterator[None]:
    """How many trials Tune lets wait, unless the user has said it; Tune takes it from the environment only."""
    said = os.environ.get(PENDING)
    os.environ[PENDING] = said or str(trials)
    try:
        yield
    finally:
        os.environ.pop(PENDING)
        if said:
            os.environ[PENDING] = said


def can_resume(folder: Folder) -> bool:
    """Whether a search in this folder has come far enough to leave a state."""
    return bool(tune.Tuner.can_restore(str(folder / TUNE_FOLDER)))
