"""Who gets a seat in whose run, on a board without Ray."""

import asyncio
from dataclasses import replace

from components.cluster.slots.command_board import CommandBoard
from components.cluster.slots.deaths import Evidence
from components.cluster.slots.protocol import Done, Left, Resume, Start
from components.cluster.slots.seats import Seat, Seats
from components.experiment.spec import TrialSpec


def seat(slot, host="", kind="a base", node="n1", count=3):
    return Seat(slot=slot, host=host, kind=kind, node=node, count=count, alive=[])


def hosts(seats, *wanted):
    return [seats.take(each)[0].host for each in wanted]


def test_the_first_slot_of_a_node_hosts_and_others_have_its_seats():
    seats = Seats()
    assert hosts(seats, *map(seat, "abcde")) == ["a", "a", "a", "d", "d"]
    assert [guest.slot for guest in seats.guests("a")] == ["b", "c"]
    assert seats.guests("a")[0] == seat("b", host="a")


def test_seats_are_shared_by_trials_of_one_kind_on_one_node():
    seats = Seats()
    unlike = [seat("a"), seat("b", kind="another base"), seat("c", node="n2"), seat("d", count=2), seat("e")]
    assert hosts(seats, *unlike) == ["a", "b", "c", "d", "a"]


def test_a_seat_that_is_left_is_taken_again_and_a_run_ends_with_its_host():
    seats = Seats()
    hosts(seats, *map(seat, "abc"))
    seats.leave("b")
    assert hosts(seats, seat("d")) == ["a"]
    seats.leave("a")
    assert hosts(seats, seat("e"), seat("f")) == ["e", "e"]  # those of a's run are on their way to other slots
    assert [guest.slot for guest in seats.guests("e")] == ["f"]


def test_a_run_ends_once_it_has_no_guests_and_gets_none_then():
    seats = Seats()
    hosts(seats, *map(seat, "ab"))
    assert not seats.close("a")
    assert hosts(seats, seat("c")) == ["a"]  # it still goes on
    for guest in "bc":
        seats.leave(guest)
    assert seats.close("a")
    assert hosts(seats, seat("d")) == ["d"]


def test_a_board_that_replaces_another_one_hears_of_seats_with_the_commands():
    asyncio.run(_a_board_that_replaces_another_one_hears_of_seats_with_the_commands())


async def _a_board_that_replaces_another_one_hears_of_seats_with_the_commands():
    board = CommandBoard()
    start = Start(number=1, trial_id="t", spec=TrialSpec())
    calls = [
        asyncio.ensure_future(board.submit(slot, start, Resume(), seat(slot, host="a"))) for slot in ("b", "a", "c")
    ]
    await asyncio.sleep(0)
    assert board.seats._seats["a"] == seat("a", host="a")
    assert [guest.slot for guest in await board.guests("a", frozenset())] == ["b", "c"]
    assert (await board.take_seat(seat("d")))[0].host == "d"
    assert not await board.close_seats("a")
    await board.stop_search()
    assert isinstance(await board.submit("e", replace(start, number=2), Resume()), Left)
    for call in calls:
        call.cancel()


def test_a_worker_hears_at_once_of_a_new_guest():
    asyncio.run(_a_worker_hears_at_once_of_a_new_guest())


async def _a_worker_hears_at_once_of_a_new_guest():
    board = CommandBoard()
    await board.take_seat(seat("a"))
    waiting = asyncio.ensure_future(board.guests("a", frozenset()))
    await asyncio.sleep(0)
    assert not waiting.done()
    await board.take_seat(seat("b"))
    assert [guest.slot for guest in await asyncio.wait_for(waiting, 0.5)] == ["b"]
    assert [guest.slot for guest in await board.guests("a", frozenset("b"))] == ["b"]  # after a while, as nobody came
    await board.leave_seat("b")
    assert await board.guests("a", frozenset("b")) == []


def test_the_death_of_a_shared_worker_is_one_of_every_trial_in_it():
    asyncio.run(_the_death_of_a_shared_worker())


async def _the_death_of_a_shared_worker():
    """What Ray's memory monitor says reaches the host's slot only."""
    board, slots = CommandBoard(), ("a", "b")
    for slot in slots:
        await board.take_seat(seat(slot))
    spec = TrialSpec(batch={"rows_per_micro_batch": 8})
    starts = {slot: Start(number=1, trial_id=f"trial-{slot}", spec=spec) for slot in slots}
    calls = [asyncio.ensure_future(board.submit(slot, starts[slot], Resume(), seat(slot, host="a"))) for slot in slots]
    await asyncio.sleep(0)
    for slot in slots:
        await board.register_worker_group(slot)
        taken = await board.next_command(slot, None)
        answer = asyncio.ensure_future(board.next_command(slot, Done(number=taken.number)))
        await asyncio.sleep(0)
        answer.cancel()
    await asyncio.gather(*calls)
    await board.note_death("a", Evidence(reason="the node's memory ran out", out_of_memory=True))
    for slot in slots:
        await board.register_worker_group(slot)
        assert (await board.take_over(slot)).start.max_rows == 4


def test_a_new_worker_trains_nothing_for_a_host_that_has_no_trial():
    asyncio.run(_a_new_worker_trains_nothing_for_a_host())


async def _a_new_worker_trains_nothing_for_a_host():
    board = CommandBoard(replaces=True)
    for slot in "ab":
        await board.take_seat(seat(slot))
    taking_over = asyncio.ensure_future(board.take_over("a"))
    await asyncio.sleep(0)
    assert not taking_over.done()  # this board does not know yet what the host was at
    assert not await board.close_seats("a")
    assert (await asyncio.wait_for(taking_over, 1)).start is None
