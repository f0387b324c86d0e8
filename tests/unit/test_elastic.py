"""How many workers an elastic trial gets: arithmetic, with what the cluster has told, and a clock of the test's own."""

from types import SimpleNamespace

import pytest
from ray.tune.experiment import Trial

from components.cluster.capacity.cluster_capacity import Available
from components.cluster.scheduling.clone_queue import CloneQueue
from components.cluster.scheduling.elastic import (
    LOOK_SECONDS,
    PATIENCE_SECONDS,
    ElasticPolicy,
    QueuedTrial,
    num_workers_at_report,
    num_workers_at_start,
)
from components.cluster.scheduling.migration import Migration
from components.cluster.slots.slot_result import ExitReason, SlotResult
from components.experiment.spec import WorkersSpec

ONE_TO_FOUR = WorkersSpec(workers=(1, 4))


@pytest.mark.parametrize(
    ("free", "startable", "waiting", "patient", "number"),
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
    free, startable, waiting, patient, number
):
    available = Available(free=free, startable=startable)
    assert num_workers_at_start(ONE_TO_FOUR, available, waiting=waiting, patient=patient) == number


def test_a_trial_never_gets_fewer_than_its_method_needs():
    assert num_workers_at_start(WorkersSpec(workers=(2, 4)), Available(free=1), waiting=1, patient=False) == 2


@pytest.mark.parametrize(
    ("has", "free", "waiting", "number"), [(1, 2, 0, 3), (1, 8, 0, 4), (4, 8, 0, 4), (2, 0, 0, 2), (1, 2, 1, 1)]
)
def test_a_trial_that_runs_takes_free_places_for_which_nobody_waits(has, free, waiting, number):
    assert num_workers_at_report(ONE_TO_FOUR, has, Available(free=free), waiting=waiting) == number


class Cluster:
    """What is free, and what time it is, as the test says. Called as the policy's `available`."""

    def __init__(self, free, startable=0):
        self.free, self.startable, self.now = free, startable, 100.0
        self.policy = ElasticPolicy(self, clock=lambda: self.now)

    def __call__(self, workers):
        return Available(free=self.free, startable=self.startable)

    def changes(self, num_workers, waiting=1, workers=ONE_TO_FOUR):
        queued = [QueuedTrial(trial_id="a", workers=workers, num_workers=num_workers)]
        return list(self.policy.changes(queued, waiting=waiting))


def test_a_new_trial_shares_what_is_free_with_those_that_wait():
    assert Cluster(free=4).policy.at_start(ONE_TO_FOUR, waiting=2) == 2


def test_a_trial_at_its_report_grows_by_what_is_free():
    assert Cluster(free=2).policy.at_report(ONE_TO_FOUR, 1, waiting=0) == 3


def test_a_waiting_trial_changes_its_workers_once_two_looks_agree():
    cluster = Cluster(free=2)
    assert cluster.changes(num_workers=4) == []
    assert cluster.changes(num_workers=4) == [("a", 2)]


def test_looks_that_disagree_change_nothing():
    cluster = Cluster(free=2)
    assert cluster.changes(num_workers=4) == []
    cluster.free = 3
    assert cluster.changes(num_workers=4) == []


def test_a_trial_that_has_left_the_queue_is_looked_at_as_if_for_the_first_time():
    cluster = Cluster(free=2)
    cluster.changes(num_workers=4)
    list(cluster.policy.changes([], waiting=0))
    assert cluster.changes(num_workers=4) == []


def test_a_trial_waits_for_nodes_that_could_start_and_then_takes_what_is_free():
    cluster = Cluster(free=1, startable=3)
    assert [cluster.changes(num_workers=4), cluster.changes(num_workers=4)] == [[], []]
    cluster.now += PATIENCE_SECONDS
    assert [cluster.changes(num_workers=4), cluster.changes(num_workers=4)] == [[], [("a", 1)]]


def test_patience_begins_when_there_is_room_for_the_fewest_workers():
    cluster = Cluster(free=0, startable=4)
    cluster.changes(num_workers=4)
    cluster.now += 10 * PATIENCE_SECONDS
    cluster.free, cluster.startable = 1, 3
    assert [cluster.changes(num_workers=4), cluster.changes(num_workers=4)] == [[], []]


def test_the_queue_is_looked_at_every_few_seconds():
    cluster = Cluster(free=1)
    assert [cluster.policy.is_due(), cluster.policy.is_due()] == [True, False]
    cluster.now += LOOK_SECONDS
    assert cluster.policy.is_due()


def trial(name="a", status=Trial.PENDING, **more):
    """As much of a Tune trial as the plain objects ask for."""
    return SimpleNamespace(
        trial_id=name, status=status, is_saving=False, is_finished=lambda: False, placement_group_factory="two", **more
    )


class Hashable(SimpleNamespace):
    __hash__ = object.__hash__


def leaving(**more):
    return Hashable(**{**vars(trial()), **more})


def taken(migration, one, exit_reason):
    return migration.takes(one, SlotResult(slot="s", exit_reason=exit_reason))


def test_a_report_is_no_reason_to_leave():
    migration = Migration()
    assert not taken(migration, leaving(), None)
    assert list(migration.ready()) == []


def test_a_preempted_trial_goes_on_with_its_placement_once():
    migration, one = Migration(), leaving()
    assert taken(migration, one, ExitReason.PREEMPTED)
    assert list(migration.ready()) == [(one, "two")]
    assert list(migration.ready()) == []


def test_a_trial_that_leaves_with_its_search_is_not_queued_again():
    migration = Migration()
    assert taken(migration, leaving(), ExitReason.STOP)
    assert list(migration.ready()) == []


def test_a_trial_is_queued_again_once_tune_has_its_checkpoint():
    migration, one = Migration(), leaving(is_saving=True)
    migration.leave(one, "four")
    assert list(migration.ready()) == []
    one.is_saving = False
    assert list(migration.ready()) == [(one, "four")]


def test_a_trial_that_ended_on_its_way_is_not_queued_again():
    migration, one = Migration(), leaving(is_finished=lambda: True)
    migration.leave(one, "four")
    assert list(migration.ready()) == []


def test_the_clone_that_has_waited_longest_comes_first():
    trials = [trial("drawn"), trial("runs", Trial.RUNNING), trial("first"), trial("second")]
    clones = CloneQueue(lambda one: one.trial_id != "drawn")
    assert clones.first(trials).trial_id == "first"
    assert CloneQueue(lambda one: one.trial_id == "runs").first(trials) is None
