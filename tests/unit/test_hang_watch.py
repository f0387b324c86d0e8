"""Workers that hang are known by their trial's own pace."""

import asyncio
import time

import pytest

from components.cluster.slots import command_board
from components.cluster.slots.hang_watch import HangRule, HangWatch
from components.cluster.slots.protocol import Advance, Witness
from components.training.pace import Pace, PaceReading
from tests.support.board import Board, answered, done, restarted, start
from tests.support.sessions import FULL, session

RULE = HangRule(seconds=180.0, factor=30.0, seconds_at_first=3600.0)


def watched(*readings, rule=RULE):
    """A watch that has had these readings, at these times, in a function that asks it twice at a time."""
    watch = HangWatch()
    for now, reading in readings:
        watch.note(reading, now)

    def verdict(now):
        watch.verdict(now, rule)
        return watch.verdict(now, rule)

    return verdict


def step(marks, gap):
    return PaceReading(marks=marks, phase="step", gap=gap)


def test_a_trial_hangs_after_thirty_times_its_own_pace_and_it_is_said():
    verdict = watched((0.0, step(1, 10.0)), (5.0, step(2, 10.0)), (10.0, step(2, 10.0)))
    assert verdict(304.9) is None
    assert verdict(317.0) == "no step for 312 s, 31 times its own pace of 10 s"


@pytest.mark.parametrize(("gap", "limit"), [(0.01, 180.0), (6.0, 180.0), (100.0, 3000.0), (None, 3600.0)])
def test_fast_trials_have_minutes_and_the_first_step_an_hour(gap, limit):
    verdict = watched((0.0, step(1, gap)))
    assert verdict(limit - 1) is None
    assert verdict(limit + 1) is not None


def test_what_has_no_pace_is_not_watched():
    assert watched((0.0, step(1, 1.0)), (5.0, PaceReading(marks=2, phase=None)))(10_000.0) is None


def test_a_new_group_is_watched_by_the_pace_of_the_one_before():
    watch = HangWatch()
    watch.note(step(9, 10.0), 0.0)
    watch.forget_group()
    assert watch.verdict(1000.0, RULE) is None
    watch.note(step(1, None), 1000.0)
    verdicts = [watch.verdict(now, RULE) for now in (1299.0, 1301.0, 1306.0)]
    assert verdicts == [None, None, "no step for 306 s, 31 times its own pace of 10 s"]


def test_a_watch_that_was_held_up_itself_hears_first_what_came_meanwhile():
    watch = HangWatch()
    watch.note(step(1, 1.0), 0.0)
    assert watch.verdict(1000.0, RULE) is None  # the first question after the pause
    watch.note(step(2, 1.0), 1000.1)
    assert watch.verdict(1005.0, RULE) is None


def test_a_trial_marks_steps_and_batches_and_nothing_between_them(toy, tmp_path):
    of, seen = session(toy, tmp_path), []
    of.start("trial", FULL)
    mark = of.pace.mark

    def noting():
        mark()
        seen.append(of.pace.read())

    of.pace.mark = noting
    report = of.advance()
    phases = [reading.phase for reading in seen]
    assert phases.count("step") == report.step
    assert phases.count("batch of the evaluation") >= 1
    assert all(reading.gap > 0 for reading in seen)
    assert of.pace.read().phase is None
    assert [reading.marks for reading in seen] == sorted({reading.marks for reading in seen})
    of.start("another", FULL)
    with of.pace.watched("step"):
        assert of.pace.read().gap is None  # its own pace is not known yet


def test_the_gap_is_the_median_so_that_one_slow_step_is_no_pace():
    pace = Pace()
    with pace.watched("step"):
        for seconds in (0.0, 0.2, 0.0):
            time.sleep(seconds)
            pace.mark()
        assert pace.read().gap < 0.1


def test_the_workers_of_a_slot_that_hang_are_to_be_ended_and_it_is_a_strike(monkeypatch):
    """A first worker that is stopped says nothing: what it said last counts."""
    monkeypatch.setattr(command_board, "HEARTBEAT_SECONDS", 0.0)

    async def scenario():
        board = Board(hangs=HangRule(seconds=0.05, factor=1.0))
        await board.register_worker_group("slot")
        await answered(board, start("t"), done)
        call, ends = asyncio.ensure_future(board.ask(Advance())), []
        await asyncio.sleep(0)
        for _ in range(3):
            await board.register_worker_group("slot")
            await board.bear_witness("slot", Witness(worker="actor", node="here"))
            await board.take_over("slot")
            await board.wait_for_stop("slot", step(1, 0.001))
            await asyncio.sleep(0.1)
            ends.append([await board.watched_group("slot") for _ in range(2)])
            await board.note_death("slot", None)
            await asyncio.sleep(0.1)
            ends.append([await board.watched_group("slot") for _ in range(2)])
        await restarted(board)
        return ends, await call

    ends, answer = asyncio.run(asyncio.wait_for(scenario(), timeout=30.0))
    assert ends[:2] == [[(["actor"], False), (["actor"], True)], [(["actor"], False)] * 2]
    assert answer.reason.startswith("its workers failed 3 times at the same place, the last time: no step for 0 s, ")
    assert not answer.lost
