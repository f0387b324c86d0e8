"""Elastic trials: how many workers each gets while others wait, when places come free, and when nodes go.

A trial changes its workers only where it stands at a checkpoint: it leaves its slot and goes on in another, of another width.
What it trains does not change: `batch.rows_per_step` is over all workers, and the loss is divided by the targets of all.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from components.cluster.capacity.autoscaler import capacity_of_cluster, places_for
from components.cluster.capacity.node_types import ClusterCapacity, Places
from components.cluster.capacity.placement import SlotPlacement
from components.cluster.scheduling.migration import Moving, start_anew
from components.cluster.scheduling.successive_halving import SuccessiveHalving
from components.cluster.slots.trial_config import TrialConfig
from components.experiment.space import num_trials
from components.experiment.spec import ExperimentSpec, WorkersSpec

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 15.0


def width_at_start(workers: WorkersSpec, places: Places, *, waiting: int, patient: bool) -> int:
    """Of a trial that waits for a slot, with `waiting` trials in all: a fair share of the room.

    Many narrow trials get more done than a few wide ones, which pay for every step with talk between the workers. While it
    is `patient` a trial waits for nodes that could come; then it begins with what is there, if that is enough.
    """
    share = (places.free + places.to_come) // max(1, waiting)
    if not patient and places.free >= workers.fewest:
        share = min(share, places.free)
    return max(workers.fewest, min(share, workers.most))


def width_at_report(workers: WorkersSpec, has: int, places: Places, *, waiting: int) -> int:
    """Of a trial that runs: it takes free places that nobody waits for. It asks for no nodes: others share them."""
    return has if waiting else max(has, min(workers.most, has + places.free))


@dataclass(slots=True)
class _Waiting:
    """What is known of a trial that waits for a slot."""

    wanted: int | None = None  # the width at the last look, if it was not the trial's
    could_start: float | None = None  # since when there has been room for its fewest workers


class Elastic(Moving):
    """Mixed into a scheduler: trials whose method has a range of workers get more or fewer of them."""

    def __init__(self, *arguments: Any, experiment: ExperimentSpec, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._experiment, self._planned = experiment, num_trials(experiment)
        self._waiting: dict[str, _Waiting] = {}
        self._next_look = 0.0

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        controller = _controller(tune_controller)
        workers = self._workers(trial)
        is_new = trial.status == Trial.PENDING and trial not in controller._pending_trials
        if workers.elastic and is_new:  # one that comes back after a failure is looked after with all who wait
            width = width_at_start(
                workers, self._places(workers), waiting=self._number_waiting(controller), patient=True
            )
            trial.update_resources(SlotPlacement(workers, width))

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        workers = self._workers(trial)
        if not workers.elastic or decision != TrialScheduler.CONTINUE:
            return decision
        has, waiting = trial.placement_group_factory.count, self._number_waiting(_controller(tune_controller))
        width = width_at_report(workers, has, self._places(workers), waiting=waiting)
        if width == has:
            return decision
        return self._leave(trial, SlotPlacement(workers, width))

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK_SECONDS
            self._look(_controller(tune_controller))
        return super().choose_trial_to_run(tune_controller)

    def _look(self, controller: Any) -> None:
        """After all who wait: a trial that does not fit (any longer) at its width is queued with another one."""
        queued = [
            trial for trial in controller.get_trials() if self._workers(trial).elastic and _queued(controller, trial)
        ]
        self._waiting = {trial.trial_id: self._waiting.get(trial.trial_id, _Waiting()) for trial in queued}
        for trial in queued:
            known, workers = self._waiting[trial.trial_id], self._workers(trial)
            width = self._width_of_waiting(known, workers, self._number_waiting(controller))
            # What the head knows of nodes lags behind what it has placed on them: only what is seen twice counts.
            if width != trial.placement_group_factory.count and width == known.wanted:
                start_anew(controller, trial, SlotPlacement(workers, width))
            known.wanted = width

    def _width_of_waiting(self, known: _Waiting, workers: WorkersSpec, waiting: int) -> int:
        places, now = self._places(workers), time.monotonic()
        if places.free < workers.fewest:
            known.could_start = None
        elif known.could_start is None:
            known.could_start = now
        patient = known.could_start is None or now - known.could_start < PATIENCE_SECONDS
        return width_at_start(workers, places, waiting=waiting, patient=patient)

    def _number_waiting(self, controller: Any) -> int:
        """Trials that wait for a slot, those included that the sampler has not drawn yet."""
        trials = controller.get_trials()
        queued = sum(trial.status in (Trial.PENDING, Trial.PAUSED) for trial in trials)
        return queued + max(0, self._planned - len(trials))

    def _places(self, workers: WorkersSpec) -> Places:
        return places_for(workers, self._room)

    @functools.cached_property
    def _room(self) -> ClusterCapacity:
        """Asked for once, and not before there is a cluster: Tune keeps schedulers in its state."""
        return capacity_of_cluster()

    def _workers(self, trial: Trial) -> WorkersSpec:
        return self._experiment.resources.of(TrialConfig.of(trial).spec.method)


class ElasticAsha(Elastic, SuccessiveHalving):
    """ASHA with trials whose number of workers changes."""


def _controller(tune_controller: Any) -> Any:
    """Tune hands schedulers a wrapper that shows less than is needed here."""
    return getattr(tune_controller, "_tune_controller", tune_controller)


def _queued(controller: Any, trial: Trial) -> bool:
    """Whether it waits for a slot, and none is being made for it."""
    if trial.status != Trial.PENDING or trial in controller._resetting_trials:
        return False
    slot = controller._trial_to_actor.get(trial)
    if slot is None:
        return True
    manager = controller._actor_manager
    placed = manager._resource_manager.has_resources_ready(trial.placement_group_factory)
    return slot in manager.pending_actors and not placed
