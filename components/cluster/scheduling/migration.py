"""Trials that leave their slot between two reports, whatever scheduler decides about their reports.

Tune itself knows two ways out of a slot: to pause, after which it hands the slot to the next trial, and to fail, which it
counts. A slot whose node is about to go must be thrown away, and it is nobody's failure.
"""

from __future__ import annotations

from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from components.cluster.scheduling.search_algorithms import ClonesFirst
from components.cluster.slots.slot_result import ExitReason, SlotResult


class Moving(ClonesFirst):
    """Mixed into a scheduler: a result that is no report (slot.py) is none of its business."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._moving: dict[Trial, PlacementGroupFactory] = {}  # with the placement each shall have
        self._begun = False

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        exit_reason = SlotResult.of(result).exit_reason
        if exit_reason is None:
            return str(super().on_trial_result(tune_controller, trial, result))
        if exit_reason is ExitReason.PREEMPTED:
            return self._leave(trial, trial.placement_group_factory)
        return str(TrialScheduler.NOOP)

    def choose_trial_to_run(self, tune_controller: Any) -> Trial | None:
        controller = getattr(tune_controller, "_tune_controller", tune_controller)
        if not self._begun:
            # Tune restores decisions that waited for a save when its state was written. They were about slots that are gone:
            # the NOOP of a trial that left with its search would outlive that search, and the trial never go on.
            controller._cached_trial_decisions.clear()
            controller._queued_trial_decisions.clear()
            self._begun = True
        for trial in [trial for trial in self._moving if not trial.is_saving]:
            placement = self._moving.pop(trial)
            if not trial.is_finished():
                start_anew(controller, trial, placement)
        return super().choose_trial_to_run(tune_controller)

    def _leave(self, trial: Trial, placement: PlacementGroupFactory) -> str:
        """The decision about a result after which the trial goes on elsewhere, once Tune has its checkpoint."""
        self._moving[trial] = placement
        return str(TrialScheduler.NOOP)


def start_anew(controller: Any, trial: Trial, placement: PlacementGroupFactory) -> None:
    """Takes the trial out of its slot, or out of the queue for one, and queues it for a new one with this placement.

    The slot ends. These are the steps of TuneController._schedule_trial_stop but the one that keeps the slot.
    """
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
    slot = controller._trial_to_actor.pop(trial, None)
    if slot is not None:
        controller._actor_to_trial.pop(slot)
        controller._actor_manager.clear_actor_task_futures(slot)
        trial.set_ray_actor(None)
        controller._remove_actor(slot)
    # Tune keeps a list of those who wait for each placement, by the placement they have at that moment.
    controller._set_trial_status(trial, Trial.PAUSED)
    trial.update_resources(placement)
    controller._set_trial_status(trial, Trial.PENDING)
    controller._mark_trial_to_checkpoint(trial)
