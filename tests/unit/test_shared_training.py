"""Several runners on one base, each in a thread of its own, as a shared slot has them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from components.errors import InputError
from components.experiment.spec import LoraMethod
from components.records.events import InterimCheckpoint
from components.storage.open_folder import folder_at
from components.training.co_training import SharedTraining
from components.training.out_of_memory import RowsExceedMemory
from components.training.turns import Turns
from tests.support.co_trials import FOUR, WILD, after
from tests.support.sessions import FULL, LORA, Signals, curve, reports, session


def in_threads(work, items):
    with ThreadPoolExecutor(len(items)) as pool:
        return list(pool.map(work, range(len(items)), items))


def sharing(toy, folder, count):
    """Sessions that train on one base."""
    shared = SharedTraining()
    sessions = [session(toy, folder / f"seat{number}") for number in range(count)]
    for each in sessions:
        each.shared = shared
    return sessions


def test_trials_in_threads_have_the_curves_of_each_alone(toy, tmp_path):
    seats, trials = sharing(toy, tmp_path / "shared", 4), [*FOUR, WILD]
    waiting = [*trials[4:]]

    def serve(number, spec):
        found = [(spec, reports(seats[number], spec))]
        while waiting:  # a seat takes the next trial while the others go on
            found.append((spec := waiting.pop(0), reports(seats[number], spec)))
        return found

    found = [each for seat in in_threads(serve, FOUR) for each in seat]
    assert len(found) == len(trials)
    alone = session(toy, tmp_path / "alone")
    for spec, together in found:
        expected = reports(alone, spec)
        assert curve(together) == pytest.approx(curve(expected), abs=1e-5)
        assert [each.diverged for each in together] == [each.diverged for each in expected]


def test_a_trial_that_leaves_goes_on_in_another_seat(toy, tmp_path):
    seats = sharing(toy, tmp_path / "shared", 3)

    def serve(number, spec):
        if number > 0:
            return reports(seats[number], spec)
        seats[0].start("moves", spec)
        left = seats[0].advance(Signals(preempted=after(2)))
        assert isinstance(left, InterimCheckpoint)
        seats[0].start("moves", spec)  # as another slot would
        seats[0].load(folder_at(left.checkpoint))
        found = []
        while not (found and found[-1].done):
            found.append(seats[0].advance())
        return found

    found = in_threads(serve, FOUR[:3])
    alone = session(toy, tmp_path / "alone")
    for spec, together in zip(FOUR[:3], found, strict=True):
        assert curve(together) == pytest.approx(curve(reports(alone, spec)), abs=1e-5)


def test_an_error_of_a_joint_step_is_one_of_every_trial_in_it(toy, tmp_path):
    seats = sharing(toy, tmp_path, 2)
    for number, seat in enumerate(seats):
        seat.start(f"trial{number}", FOUR[number])
    meeting = threading.Barrier(2)

    def too_much(*_):
        raise MemoryError("no room for these rows")

    for seat in seats:
        seat.running.draw = too_much

    def advance(number, seat):
        meeting.wait(10)
        with pytest.raises(RowsExceedMemory, match="no room"):
            seat.advance()
        return True

    assert all(in_threads(advance, seats))


def test_an_error_of_an_evaluation_is_that_trials_alone_and_later_ones_go_on(toy, tmp_path):
    seats = sharing(toy, tmp_path / "shared", 3)

    def odd(**_):
        raise InputError("a reply that no score can be made of")

    def serve(number, spec):
        if number != 1:
            return reports(seats[number], spec)
        seats[1].start("odd", spec)
        seats[1].running._measure = odd
        with pytest.raises(InputError, match="no score"):
            seats[1].advance()
        return reports(seats[1], spec)  # the next trial of this seat

    found = in_threads(serve, FOUR[:3])
    assert not seats[0].shared.current._said
    alone = session(toy, tmp_path / "alone")
    for spec, together in zip(FOUR[:3], found, strict=True):
        assert curve(together) == pytest.approx(curve(reports(alone, spec)), abs=1e-5)


def test_what_cannot_share_a_base_leaves_no_trace_in_it(toy, tmp_path):
    first, second = sharing(toy, tmp_path, 2)
    first.start("first", LORA)
    with pytest.raises(InputError, match=r"full fine-tuning changes the base.*search.trials_per_slot: 1"):
        second.start("second", FULL)
    with pytest.raises(InputError, match="precision bf16 and fp32 cannot be trained in one pass"):
        second.start("second", LORA.model_copy(update={"precision": "bf16"}))
    for names in (("nowhere",), ("q_proj", "embed_tokens")):
        with pytest.raises(InputError, match=r"method\.target_modules"):
            second.start("second", LORA.model_copy(update={"method": LoraMethod(target_modules=names)}))
    group = first.shared.current
    assert group.members == (first.running,)
    assert group.base.models == (first.running.model,)
    assert not any("lora" in name for name, _ in group.base.base.named_parameters())


def test_threads_take_turns_in_the_order_in_which_they_ask():
    turns, order, asked = Turns(), [], threading.Semaphore(0)

    def take(number):
        with turns.mine():
            order.append(number)

    with turns.mine():
        threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
        for number, thread in enumerate(threads, start=1):
            thread.start()
            while len(turns._queue) <= number:
                asked.acquire(timeout=0.001)
    for thread in threads:
        thread.join(10)
    assert order == list(range(8))


def test_a_turn_ends_with_an_error_in_it():
    turns = Turns()
    with pytest.raises(ValueError, match="mine"), turns.mine():
        raise ValueError("mine")
    with turns.mine():
        pass
