"""Runs a search, or goes on with one that was interrupted. Every event leaves as a TrialRecord."""

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

from components.batches.prepare import PreparedDataset
from components.cluster.board import Board
from components.cluster.context import SearchContext, trial_of
from components.cluster.directing import Director, StopsWhenTold, direct
from components.cluster.nodes import room_of_cluster
from components.cluster.placement import SlotPlacement
from components.cluster.relay import Emit, Relay, listen
from components.cluster.sampling import parameter_space, pending_trials, scheduler, search_algorithm
from components.cluster.slot import Slot
from components.cluster.stopping import CleanStop, Told
from components.experiment.space import num_trials
from components.storage.folder import Folder
from components.training.records import TrialHistory
from components.training.requests import Desk
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
    desk: Desk | None = None,
) -> signal.Signals | None:
    """Blocks until every trial has ended, or a signal has ended the search (stopping.py): then returns that.

    Ray must be up. Raises UnfitWorkersError, all trials having ended, if none of them can succeed on these machines.

    Args:
        emit: told every TrialRecord, in this process, in order; it must not block for long.
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
        ray.remote(Board)
        .options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here)
        .remote(
            {trial_id: history.extensions for trial_id, history in histories.items()},
            [trial_id for trial_id, history in histories.items() if history.stop is not None],
        )
    )
    director = Director(context, board, emit, histories, desk, budget)
    direct(director)
    listener = listen(context, director.emit, histories)

    def placement(config: dict[str, Any]) -> SlotPlacement:
        workers = experiment.resources.of(trial_of(config)[3].method)
        return SlotPlacement(workers, workers.fewest)  # the scheduler gives elastic trials more (elastic.py)

    trainable = tune.with_resources(tune.with_parameters(Slot, context=context, board=board), placement)
    if resume:
        tuner = tune.Tuner.restore(str(context.folder / TUNE_FOLDER), trainable, resume_unfinished=True)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=parameter_space(experiment),
            tune_config=tune.TuneConfig(
                scheduler=scheduler(experiment, budget, context.search_id),
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
                callbacks=[Relay(context.search_id)],
                stop=StopsWhenTold(context.search_id),
                verbose=0,
            ),
        )
    with CleanStop(board, told) as stop, _pending(pending_trials(experiment, room_of_cluster())):
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
