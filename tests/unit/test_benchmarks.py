"""The arithmetic of experiments/benchmarks; the benchmarks themselves take minutes and are run by hand."""

from dataclasses import replace

import pytest

from components.cluster.scheduling.successive_halving import HalvingRule
from components.records.events import StepMetrics, TrialEnded, TrialProgressed
from experiments.benchmarks import gate_calibration
from experiments.benchmarks.asha_brackets import Curve, replay_order
from experiments.benchmarks.gate_calibration import COIN, SCENARIOS, Case, Scenario
from experiments.benchmarks.warm_slots import Search, check_equal, search_of, table
from tests.support import records


def started(trial_id, number, time):
    return records.started(trial_id, number=number, time=time)


def progressed(trial_id, slot, time, step_ended, *, step=1, loss=2.0):
    """A report heard at `time`, of one step of half a second (and of those before it)."""
    metrics = StepMetrics(
        step=step, target_tokens=10, loss=1.0, learning_rate=0.1, grad_norm=1.0, seconds=0.5 * step, time=step_ended
    )
    progress = records.progress(step, loss, seconds=0.5 * step, steps=(metrics,))
    return TrialProgressed(trial_id=trial_id, progress=progress, slot=slot, time=time)


def ended(trial_id, time):
    return TrialEnded(trial_id=trial_id, state="completed", time=time)


RECORDS = [
    started("a", 1, 100.0),
    started("b", 2, 100.0),
    progressed("a", "left", 112.0, 110.5),
    progressed("b", "right", 121.0, 120.5),
    progressed("a", "left", 114.0, 113.0, step=2, loss=1.5),
    ended("a", 114.25),
    started("c", 3, 114.25),
    progressed("c", "left", 118.0, 115.0),
    ended("b", 121.25),
    ended("c", 118.25),
]


def test_a_gap_runs_from_a_last_report_to_the_next_first_step_in_the_slot():
    search = search_of(RECORDS, makespan=25.0)
    assert search.warm == (0.5,)  # c's step began at 115.0 - 0.5; a was last heard of at 114.0
    assert search.cold == (10.0, 20.0)
    assert search.work == (4.0, 3.5, 1.0)
    assert search.losses == {1: 1.5, 2: 2.0, 3: 2.0}


def test_the_table_divides_the_makespans_and_names_the_median_ratio():
    def search(makespan):
        return Search(makespan=makespan, losses={1: 2.0}, work=(1.0,), cold=(9.0,), warm=(0.25, 0.75))

    text = table([(search(10.0), search(30.0)), (search(10.0), search(50.0))])
    assert "| 1 | 10.0 | 30.0 | 3.00 |" in text
    assert "| median | | | **4.00** |" in text
    assert "first step of the next | 4 | 0.50 | 0.75 |" in text


def test_ways_that_end_with_other_losses_are_not_compared():
    one = Search(makespan=1.0, losses={1: 2.0}, work=(), cold=())
    other = Search(makespan=1.0, losses={1: 2.00001}, work=(), cold=())
    with pytest.raises(AssertionError, match=r"trial 1 ended at 2\.0 in a slot, at 2\.00001 without"):
        check_equal(one, other)


def curve(number, branch, *losses, seconds=1.0):
    """A trial that reports at 100, 200, ... target tokens, every `seconds`."""
    reports = tuple((100 * turn, loss, seconds * turn) for turn, loss in enumerate(losses, start=1))
    return Curve(number=number, branch=branch, varied={}, reports=reports)


SLOW_START = [
    curve(1, "full", 2.0, 1.9, 1.8, 1.7),
    curve(2, "lora", 3.0, 2.0, 1.0, 0.5),
    curve(3, "full", 2.1, 2.0, 1.9, 1.8),
    curve(4, "lora", 3.5, 2.5, 1.5, 0.6),
]


def test_a_shared_bracket_stops_a_slow_branch_and_its_own_bracket_keeps_its_best():
    halving = HalvingRule(rungs=(100,), reduction_factor=2, per_branch=False)
    together = replay_order(SLOW_START, halving, {"lora": 1, "full": 1})
    assert together.stopped == (2, 3, 4)
    assert together.best == {"full": 1.7, "lora": 3.0}
    assert together.spent == (400 + 3 * 100) / 1600
    apart = replay_order(SLOW_START, replace(halving, per_branch=True), {"lora": 1, "full": 1})
    assert apart.stopped == (3, 4)
    assert apart.best == {"full": 1.7, "lora": 0.5}


def test_trials_that_fill_the_machine_run_one_after_the_other():
    """Of two full trials on both CPUs the first ends before the second reports, so the better second one is kept, too."""
    order = [curve(1, "full", 3.0, 1.0), curve(2, "full", 2.0, 1.5), curve(3, "lora", 2.5, 1.0)]
    halving = HalvingRule(rungs=(100,), reduction_factor=2, per_branch=False)
    assert replay_order(order, halving, {"lora": 1, "full": 2}).stopped == (3,)


@pytest.mark.parametrize(
    "case",
    [
        Case(scenario=SCENARIOS[3], count=30, candidates=1),
        Case(scenario=SCENARIOS[1], count=30, candidates=1),
        Case(scenario=SCENARIOS[0], count=100, candidates=8),
        Case(scenario=SCENARIOS[3], count=30, candidates=96, nested=True),
        Case(scenario=Scenario(shape=COIN, spread=0.0), count=30, candidates=24),
    ],
    ids=lambda case: f"{case.count} conversations, {case.words} candidates, {case.scenario.words}",
)
def test_the_gate_seldom_promotes_what_is_no_better(case):
    """Before, the best of 8 candidates that are all equal passed in 13 %, the best of 96 in 35 %."""
    found = gate_calibration.measured(case, samples=600)
    assert found.after <= found.bound
    assert found.before > {1: 0.01, 8: 0.09, 24: 0.12, 96: 0.25}[case.candidates]
    assert found.line() in gate_calibration.markdown([found], [], [], [])


def test_the_gate_promotes_what_is_clearly_better_and_tells_verdict_splits_apart():
    line = gate_calibration.PowerLine.of(100, 0.2, samples=40)
    assert line.verdict > 0.75
    assert all(0.5 < share < 1.01 for share in line.corrected)
    assert not gate_calibration.power(30, 0.02, 8, samples=100) > 0.15


def test_a_model_that_is_worse_by_the_margin_is_seldom_found_no_worse():
    line = gate_calibration.MarginLine.of(100, 0.1, 0.15, 0.05, samples=400)
    assert line.passed <= 0.025 + 3 * (0.025 * 0.975 / 400) ** 0.5
    assert gate_calibration.MarginLine.of(30, 0.02, 0.02, 0.0, samples=100).passed == 0.0
    assert line.line() in gate_calibration.markdown([at_least()], [], [], [line])


def at_least():
    return gate_calibration.measured(Case(scenario=SCENARIOS[0], count=30, candidates=1), samples=2)
