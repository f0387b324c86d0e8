"""Steps in Tune's loop that its schedulers and searchers cannot ask for: a trial leaves its slot, a trial is added by id.

`controller` is the TuneController, or the wrapper around it that Tune hands to schedulers and that shows less.
"""

from __future__ import annotations

from typing import Any

from ray.tune import PlacementGroupFactory
from ray.tune.execution import class_cache
from ray.tune.experiment import Experiment, Trial
from ray.tune.experiment.config_parser import _create_trial_from_spec, _make_parser

KEYS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN"}


def keep_keys_here() -> None:
    """Keeps Tune from copying the driver's AWS keys into the runtime environment of every slot.

    From there they would reach the cluster's control store and a log in Ray's session folder that everybody may read. Workers
    upload by the role or the environment of their own node.

    Public way: none. The names are in a set of Tune's that no setting changes.
    Test: tests/unit/test_ray_internals.py::test_the_drivers_aws_keys_are_in_no_runtime_environment
    """
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(KEYS)


def requeue(controller: Any, trial: Trial, placement: PlacementGroupFactory) -> None:
    """Takes a trial out of its slot, or out of the queue for one, and queues it for a new slot with this placement.

    The slot ends. These are the steps of TuneController._schedule_trial_stop without the one that keeps the slot.

    Public way: the decision PAUSE hands the slot to the next trial, though its node may be about to go; a failure is
    counted; `update_pending_trial_resources` changes all waiting trials, and not the queues that hold them by resources.
    Issue: ResourceChangingScheduler goes the way of PAUSE, and hangs:
    https://github.com/ray-project/ray/issues/30265
    Test: tests/unit/test_ray_internals.py::test_a_requeued_trial_waits_for_its_new_placement_and_its_slot_ends
    """
    controller = _unwrap(controller)
    if trial in controller._staged_trials:
        controller._unstage_trial_with_resources(trial)
    slot = controller._trial_to_actor.pop(trial, None)
    if slot is not None:
        controller._actor_to_trial.pop(slot)
        controller._actor_manager.clear_actor_task_futures(slot)
        trial.set_ray_actor(None)
        controller._remove_actor(slot)
    # Tune lists the trials that wait for each placement, by the placement they have when their status changes.
    controller._set_trial_status(trial, Trial.PAUSED)
    trial.update_resources(placement)
    controller._set_trial_status(trial, Trial.PENDING)
    controller._mark_trial_to_checkpoint(trial)


def is_queued(controller: Any, trial: Trial) -> bool:
    """Whether a trial waits for a slot, and Tune neither makes one nor hands one over.

    Public way: `trial.status` is PENDING for all of these.
    Test: tests/unit/test_ray_internals.py::test_a_trial_is_queued_until_its_slot_has_a_place
    """
    controller = _unwrap(controller)
    if trial.status != Trial.PENDING or trial in controller._resetting_trials:
        return False
    slot = controller._trial_to_actor.get(trial)
    if slot is None:
        return True
    manager = controller._actor_manager
    placed = manager._resource_manager.has_resources_ready(trial.placement_group_factory)
    return slot in manager.pending_actors and not placed


def is_new(controller: Any, trial: Trial) -> bool:
    """Whether a trial that Tune is adding waits for its first slot of this run: not one that comes back after a failure.

    Public way: `on_trial_add` is called for both, and does not say which.
    Test: tests/unit/test_ray_internals.py::test_a_trial_that_comes_back_after_a_failure_is_not_new
    """
    return trial.status == Trial.PENDING and trial not in _unwrap(controller)._pending_trials


def create_trial(experiment: Experiment, config: dict[str, Any], *, trial_id: str, tag: str) -> Trial:
    """Returns a trial with this config and id, otherwise like all of the experiment: same trainable, storage and limits.

    Public way: `Trial(...)` is public, but the many arguments that a Tuner derives for it are not; Tune's own searchers
    only choose the config, and Tune the id. A trial of the journal has an id already.
    Test: tests/unit/test_ray_internals.py::test_a_trial_that_is_made_by_hand_is_like_those_of_the_search
    """
    spec = {**experiment.spec, "config": config}
    return _create_trial_from_spec(spec, _make_parser(), trial_id=trial_id, experiment_tag=tag)


def _unwrap(controller: Any) -> Any:
    return getattr(controller, "_tune_controller", controller)
