"""How many workers an elastic trial gets: arithmetic, with what the cluster has told."""

from types import SimpleNamespace

import pytest
from ray.tune.schedulers import TrialScheduler

from components.cluster.capacity.node_types import Places
from components.cluster.scheduling.elastic import width_at_report, width_at_start
from components.cluster.scheduling.migration import Moving
from components.experiment.spec import WorkersSpec

ONE_TO_FOUR = WorkersSpec(workers=(1, 4))


@pytest.mark.parametrize(
    ("free", "to_come", "waiting", "patient", "width"),
    [
        (4, 0, 1, True, 4),  # alone: all it may have
        (8, 0, 1, True, 4),
        (4, 0, 2, True, 2),  # a fair share
        (4, 0, 9, True, 1),
        (0, 0, 1, True, 1),  # nothing is free: what will be free soonest
        (0, 4, 1, True, 4),  # an autoscaler sees what waits: the whole
        (1, 3, 1, True, 4),  # and a trial waits for it
        (1, 3, 1, False, 1),  # but not for ever
        (0, 4, 1, False, 4),
    ],
)
def test_a_trial_that_waits_gets_a_fair_share_of_what_there_is_and_what_can_come(
    free, to_come, waiting, patient, width
):
    places = Places(free=free, to_come=to_come)
    assert width_at_start(ONE_TO_FOUR, places, waiting=waiting, patient=patient) == width


def test_a_trial_never_gets_fewer_than_its_method_needs():
    assert width_at_start(WorkersSpec(workers=(2, 4)), Places(free=1), waiting=1, patient=False) == 2


@pytest.mark.parametrize(
    ("has", "free", "waiting", "width"), [(1, 2, 0, 3), (1, 8, 0, 4), (4, 8, 0, 4), (2, 0, 0, 2), (1, 2, 1, 1)]
)
def test_a_trial_that_runs_takes_free_places_for_which_nobody_waits(has, free, waiting, width):
    assert width_at_report(ONE_TO_FOUR, has, Places(free=free), waiting=waiting) == width


def test_what_was_decided_about_slots_that_are_gone_does_not_hold_for_those_of_a_resumed_search():
    restored = SimpleNamespace(
        _cached_trial_decisions={"a": TrialScheduler.NOOP}, _queued_trial_decisions={}, get_trials=list
    )
    scheduler = Moving()
    scheduler.choose_trial_to_run(restored)
    assert restored._cached_trial_decisions == {}
    restored._cached_trial_decisions["b"] = TrialScheduler.PAUSE  # its own
    scheduler.choose_trial_to_run(restored)
    assert restored._cached_trial_decisions == {"b": TrialScheduler.PAUSE}
