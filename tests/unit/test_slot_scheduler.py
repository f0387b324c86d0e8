"""The scheduler of slots over Tune's own schedulers, in a Tune controller of the test's own that starts nothing."""

import pytest
from ray import cloudpickle
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from components.cluster.capacity.cluster_capacity import Available
from components.cluster.capacity.placement import SlotPlacement
from components.cluster.ray_internals.tune import is_queued
from components.cluster.scheduling.clone_queue import CloneQueue
from components.cluster.scheduling.elastic import ElasticPolicy
from components.cluster.scheduling.migration import Migration
from components.cluster.scheduling.slot_scheduler import SlotScheduler
from components.cluster.slots.slot_result import METRIC, TIME, ExitReason, SlotResult
from components.experiment.spec import WorkersSpec
from tests.support.records import progress
from tests.support.tune_controller import make_controller, make_trial

ONE, ONE_TO_FOUR = WorkersSpec(), WorkersSpec(workers=(1, 4))
OF_TUNE = {
    "fifo": FIFOScheduler,
    "asha": lambda: ASHAScheduler(time_attr=TIME, metric=METRIC, mode="min", grace_period=100, max_t=400),
    "median": lambda: MedianStoppingRule(
        time_attr=TIME, metric=METRIC, mode="min", grace_period=0, min_samples_required=1
    ),
    "hyperband": lambda: HyperBandScheduler(time_attr=TIME, metric=METRIC, mode="min", max_t=400),
}


def on_slots(base, workers=ONE, free=0, planned=0):
    return SlotScheduler(
        base,
        workers_of=lambda trial: workers,
        planned=planned,
        clones=CloneQueue(lambda trial: trial.config.get("clone", False)),
        migration=Migration(),
        policy=ElasticPolicy(lambda workers: Available(free=free)),
    )


def search(tmp_path, scheduler, *configs, workers=ONE, num_workers=1):
    """A controller with a trial for each config."""
    controller = make_controller(tmp_path, scheduler)
    for config in configs:
        controller.add_trial(make_trial(controller, config, SlotPlacement(workers, num_workers)))
    return controller, controller.get_trials()


def result(target_tokens=100, eval_loss=1.0, exit_reason=None):
    report = progress(target_tokens, eval_loss, target_tokens=target_tokens)
    return SlotResult(slot="s", progress=report, exit_reason=exit_reason).to_tune()


def run(controller, trial):
    controller._set_trial_status(trial, Trial.RUNNING)


def decision(controller, trial, told):
    return controller.scheduler_alg.on_trial_result(controller._wrapped(), trial, told)


def chosen(controller):
    return controller.scheduler_alg.choose_trial_to_run(controller._wrapped())


@pytest.mark.parametrize("base", OF_TUNE)
def test_trials_wait_in_the_order_of_the_scheduler_below(tmp_path, base):
    controller, trials = search(tmp_path, on_slots(OF_TUNE[base]()), {}, {})
    assert chosen(controller) is trials[0]
    run(controller, trials[0])
    assert chosen(controller) is trials[1]


@pytest.mark.parametrize("base", OF_TUNE)
def test_a_clone_comes_before_all_others(tmp_path, base):
    controller, trials = search(tmp_path, on_slots(OF_TUNE[base]()), {}, {"clone": True})
    assert chosen(controller) is trials[1]


@pytest.mark.parametrize("base", OF_TUNE)
def test_a_trial_that_leaves_is_no_business_of_the_scheduler_below_and_goes_on(tmp_path, base):
    controller, (trial, _) = search(tmp_path, on_slots(OF_TUNE[base]()), {}, {})
    run(controller, trial)
    gone = result(400, 9.0, ExitReason.PREEMPTED)
    assert decision(controller, trial, gone) == TrialScheduler.NOOP
    chosen(controller)
    assert trial.status == Trial.PENDING
    assert is_queued(controller, trial)


@pytest.mark.parametrize("base", OF_TUNE)
def test_a_trial_that_has_lost_its_slot_goes_on_before_others_begin(tmp_path, base):
    controller, (begun, new, _) = search(tmp_path, on_slots(OF_TUNE[base]()), {}, {}, {"clone": True})
    new.update_resources(SlotPlacement(ONE, 2))
    run(controller, begun)
    controller._maybe_add_actors()
    controller._requeue_trial(begun)
    assert controller.get_trials()[-1] is begun
    assert chosen(controller) is begun
    controller._maybe_add_actors()
    requested = controller._actor_manager._resource_manager.requested
    assert [placement.count for placement in requested] == [1, 1, 2]
    assert controller._staged_trials == set(controller.get_trials())


@pytest.mark.parametrize("reason", ["lost", "left"])
def test_trials_that_have_not_begun_ask_again_for_their_places(tmp_path, reason):
    controller, (begun, new) = search(tmp_path, on_slots(FIFOScheduler()), {}, {})
    new.update_resources(SlotPlacement(ONE, 2))
    run(controller, begun)
    controller._maybe_add_actors()
    if reason == "lost":
        controller._requeue_trial(begun)
    else:
        decision(controller, begun, result(exit_reason=ExitReason.PREEMPTED))
    controller._maybe_add_actors()
    requested = controller._actor_manager._resource_manager.requested
    assert [placement.count for placement in requested] == [1, 2]


def test_of_two_trials_that_have_lost_their_slots_the_first_goes_on_first(tmp_path):
    controller, (first, second, _) = search(tmp_path, on_slots(FIFOScheduler()), {}, {}, {})
    run(controller, first)
    run(controller, second)
    controller._requeue_trial(second)
    controller._requeue_trial(first)
    assert chosen(controller) is second
    run(controller, second)
    assert chosen(controller) is first


@pytest.mark.parametrize("base", OF_TUNE)
def test_a_trial_that_leaves_with_its_search_does_not_go_on(tmp_path, base):
    controller, (trial,) = search(tmp_path, on_slots(OF_TUNE[base]()), {})
    run(controller, trial)
    assert decision(controller, trial, result(exit_reason=ExitReason.STOP)) == TrialScheduler.NOOP
    chosen(controller)
    assert trial.status == Trial.RUNNING


def test_the_scheduler_below_stops_a_trial(tmp_path):
    controller, (good, bad) = search(tmp_path, on_slots(OF_TUNE["asha"]()), {}, {})
    assert decision(controller, good, result(100, 1.0)) == TrialScheduler.CONTINUE
    assert decision(controller, bad, result(100, 2.0)) == TrialScheduler.STOP


def test_the_scheduler_below_hears_how_trials_end(tmp_path):
    controller, (good, bad) = search(tmp_path, on_slots(OF_TUNE["median"]()), {}, {})
    run(controller, good)
    decision(controller, good, result(100, 1.0))
    good.update_last_result(result(200, 1.0))
    controller.stop_trial(good)
    assert decision(controller, bad, result(100, 2.0)) == TrialScheduler.STOP


def test_a_trial_that_the_scheduler_below_pauses_waits_until_that_one_chooses_it(tmp_path):
    controller, (first, second) = search(tmp_path, on_slots(OF_TUNE["hyperband"]()), {}, {})
    run(controller, first)
    assert decision(controller, first, result(400)) == TrialScheduler.PAUSE
    controller._set_trial_status(first, Trial.PAUSED)
    run(controller, second)
    assert chosen(controller) is None


def test_metric_and_mode_are_those_of_the_scheduler_below():
    scheduler = on_slots(ASHAScheduler(time_attr=TIME))
    assert scheduler.set_search_properties(METRIC, "min")
    assert scheduler.metric == METRIC
    assert not scheduler.set_search_properties(METRIC, "min")
    assert scheduler.supports_buffered_results
    assert not on_slots(OF_TUNE["hyperband"]()).supports_buffered_results
    assert scheduler.debug_string() == scheduler.base.debug_string()


def test_the_state_of_the_scheduler_below_is_saved_and_restored(tmp_path):
    scheduler = on_slots(OF_TUNE["asha"]())
    controller, (good, bad) = search(tmp_path / "one", scheduler, {}, {})
    decision(controller, good, result(100, 1.0))
    scheduler.save(str(tmp_path / "state"))
    restored = on_slots(OF_TUNE["asha"]())
    restored.restore(str(tmp_path / "state"))
    assert restored.on_trial_result(None, bad, result(100, 2.0)) == TrialScheduler.STOP


def test_a_new_elastic_trial_gets_a_fair_share(tmp_path):
    scheduler = on_slots(FIFOScheduler(), ONE_TO_FOUR, free=4, planned=2)
    _, (trial,) = search(tmp_path, scheduler, {}, workers=ONE_TO_FOUR)
    assert trial.placement_group_factory == SlotPlacement(ONE_TO_FOUR, 2)  # it waits, and one more is planned


def test_an_elastic_trial_takes_free_room_when_it_reports(tmp_path):
    scheduler = on_slots(FIFOScheduler(), ONE_TO_FOUR, free=2)
    controller, (trial,) = search(tmp_path, scheduler, {}, workers=ONE_TO_FOUR)
    trial.update_resources(SlotPlacement(ONE_TO_FOUR, 1))
    run(controller, trial)
    assert decision(controller, trial, result()) == TrialScheduler.NOOP
    chosen(controller)
    assert (trial.status, trial.placement_group_factory) == (Trial.PENDING, SlotPlacement(ONE_TO_FOUR, 3))


def test_an_elastic_trial_leaves_free_room_to_those_that_wait(tmp_path):
    scheduler = on_slots(FIFOScheduler(), ONE_TO_FOUR, free=2)
    controller, (trial, _) = search(tmp_path, scheduler, {}, {}, workers=ONE_TO_FOUR)
    run(controller, trial)
    assert decision(controller, trial, result()) == TrialScheduler.CONTINUE


def test_a_decision_to_stop_is_not_overruled_by_free_room(tmp_path):
    scheduler = on_slots(OF_TUNE["asha"](), ONE_TO_FOUR, free=2)
    controller, (good, bad) = search(tmp_path, scheduler, {}, {}, workers=ONE_TO_FOUR)
    run(controller, good)
    run(controller, bad)
    decision(controller, good, result(100, 1.0))
    assert decision(controller, bad, result(100, 2.0)) == TrialScheduler.STOP


def test_a_queued_elastic_trial_that_does_not_fit_is_queued_with_fewer_workers(tmp_path):
    scheduler = on_slots(FIFOScheduler(), ONE_TO_FOUR, free=4)
    controller, (trial,) = search(tmp_path, scheduler, {}, workers=ONE_TO_FOUR)
    scheduler._policy = ElasticPolicy(lambda workers: Available(free=2), clock=iter(range(0, 100, 5)).__next__)
    assert trial.placement_group_factory == SlotPlacement(ONE_TO_FOUR, 4)
    chosen(controller)
    chosen(controller)
    assert (trial.status, trial.placement_group_factory) == (Trial.PENDING, SlotPlacement(ONE_TO_FOUR, 2))


@pytest.mark.parametrize("base", ["asha", "median", "hyperband"])
def test_tune_can_pickle_it_with_the_scheduler_below(base):
    scheduler = cloudpickle.loads(cloudpickle.dumps(on_slots(OF_TUNE[base]())))
    assert type(scheduler.base) is type(OF_TUNE[base]())
