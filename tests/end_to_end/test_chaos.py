"""One search whose processes die one after another, against the same search left in peace. The long run is a benchmark."""

import pytest

from experiments.benchmarks.chaos_kit.faults import Fault
from experiments.benchmarks.chaos_kit.plan import Plan, account_for

pytestmark = pytest.mark.long  # a quarter of an hour; tests of one fault each are in CI

PLAN = Plan(
    faults=(Fault.BOARD, Fault.SLOT, Fault.TRACKING, Fault.WORKER, Fault.NODE, Fault.DRIVER_AT_END),
    seed=0,
    trials=4,
    epochs=32,
    evaluations=16,
    seconds=800,
    settles=0.0,
)


@pytest.fixture(scope="module")
def fired(tmp_path_factory):
    """(search, account)"""
    return account_for(PLAN, tmp_path_factory.mktemp("chaos"))


def test_whatever_dies_nothing_is_lost_doubled_or_left_open(fired):
    search, account = fired
    assert [struck.fault for struck in search.struck] == list(PLAN.faults)
    assert account.is_clean, account


def test_the_search_ends_by_itself_each_driver_but_the_last_having_been_stopped(fired):
    search, _ = fired
    *before, last = search.statuses
    assert last == 0
    assert before
    assert 0 not in before
