"""The board between a slot and its workers, without Ray: it is plain asyncio."""

import asyncio

import pytest

from components.cluster.slots.command_board import CommandBoard
from components.cluster.slots.deaths import Evidence
from components.cluster.slots.known_trials import KnownTrials
from components.cluster.slots.protocol import Advance, Done, EndSlot, Left, Reported, Resume
from components.cluster.slots.slot_result import ExitReason
from components.records.events import Extension, Stop, TrialInstructed, TrialProgressed, replay
from components.training.pace import PaceReading
from tests.support.board import Board, answered, asked, done, reports, restarted, start
from tests.support.records import progress
from tests.support.records import started as trial_started


def run(scenario):
    return asyncio.run(asyncio.wait_for(scenario(Board()), timeout=30.0))


def test_an_answer_reaches_whoever_asked():
    async def scenario(board):
        await board.register_worker_group("slot")
        return await answered(board, Advance(), done)

    assert run(scenario) == Done(number=1)


def test_workers_that_leave_wait_for_nothing_more():
    async def scenario(board):
        await board.register_worker_group("slot")
        call = await asked(board, EndSlot())
        command = await board.next_command("slot", None)
        last = await asyncio.wait_for(board.next_command("slot", Done(number=command.number)), timeout=5.0)
        return await call, last

    assert run(scenario) == (Done(number=1), EndSlot(number=1))


def test_a_new_worker_group_is_told_the_trial_and_its_last_acknowledged_report():
    async def scenario(board):
        await board.register_worker_group("slot")
        await answered(board, start("t"), done)
        for step in (4, 8):
            await answered(board, Advance(), reports(step, 10 * step))
        return await restarted(board)

    resume = run(scenario)
    assert (resume.start.trial_id, resume.reported_step) == ("t", 8)


def test_a_command_whose_workers_died_is_given_to_the_next_group():
    async def scenario(board):
        await board.register_worker_group("slot")
        call = await asked(board, Advance())
        lost = await board.next_command("slot", None)
        await board.register_worker_group("slot")
        again = await board.next_command("slot", None)
        waiting = asyncio.ensure_future(board.next_command("slot", Done(number=again.number)))
        await call
        waiting.cancel()
        return lost, again

    lost, again = run(scenario)
    assert lost == again


def test_a_report_says_how_many_worker_groups_died_on_its_way():
    async def advance(board, groups):
        call = await asked(board, Advance())
        for _ in range(groups):
            await board.register_worker_group("slot")
        command = await board.next_command("slot", None)
        report = Reported(number=command.number, progress=progress(1, 1.0, checkpoint="there"))
        waiting = asyncio.ensure_future(board.next_command("slot", report))
        answer = await call
        waiting.cancel()
        return answer.restarts

    async def scenario(board):
        return [await advance(board, groups) for groups in (1, 2, 0)]

    assert run(scenario) == [0, 2, 0]


def test_a_trial_that_kills_its_workers_three_times_is_given_up_with_the_reason():
    async def scenario(board):
        await board.register_worker_group("slot")
        await answered(board, start("t"), done)
        call = await asked(board, Advance())
        for _ in range(3):
            await board.next_command("slot", None)
            resume = await restarted(board, Evidence(reason="KeyError: 'x'"))
        return await call, resume

    answer, resume = run(scenario)
    assert answer.reason == "its workers failed 3 times at the same place, the last time: KeyError: 'x'"
    assert not answer.lost
    assert resume.start is None


@pytest.mark.parametrize("lost", [False, True])
def test_an_error_of_one_worker_ends_the_trial_and_is_not_resumed(lost):
    async def scenario(board):
        await board.register_worker_group("slot")
        await answered(board, start("t"), done)
        call = await asked(board, Advance())
        await board.report_worker_error("slot", 2, "out of memory", lost=lost)
        return await call, await restarted(board)

    answer, resume = run(scenario)
    assert (answer.reason, answer.lost) == ("out of memory", lost)
    assert resume.start is None


def test_groups_that_die_before_they_serve_fail_the_trial_with_the_last_error():
    async def scenario(board):
        call = await asked(board, start("t"))
        for _ in range(4):  # the first one, and three that replace it
            await board.register_worker_group("slot")
            await board.testify("slot", Evidence(reason="FileNotFoundError: no such model"))
        return await call

    times = "its workers failed 3 times at the same place"
    assert run(scenario).reason == f"{times}, the last time: FileNotFoundError: no such model"


def test_a_group_that_dies_between_two_trials_does_not_resume_the_one_that_ended():
    async def scenario(board):
        await board.register_worker_group("slot")
        await answered(board, start("first"), done)
        call = await asked(board, start("second"))
        resume = await restarted(board)
        command = await board.next_command("slot", None)
        waiting = asyncio.ensure_future(board.next_command("slot", Done(number=command.number)))
        answer = await call
        waiting.cancel()
        return resume, command, answer

    resume, command, answer = run(scenario)
    assert resume.start is None
    assert (command.trial_id, answer) == ("second", Done(number=2))


def test_the_next_trial_is_not_blamed_for_what_the_one_before_did_to_a_second_worker():
    async def scenario(board):
        await board.register_worker_group("slot")
        broken = asyncio.ensure_future(board.ask(start("first")))
        await asyncio.sleep(0)
        number = (await board.next_command("slot", None)).number
        await board.report_worker_error("slot", number, "out of memory")
        await broken
        call = await asked(board, start("second"))
        await board.report_worker_error("slot", number, "out of memory")
        command = await board.next_command("slot", None)
        waiting = asyncio.ensure_future(board.next_command("slot", Done(number=command.number)))
        answer = await call
        waiting.cancel()
        return answer

    assert run(scenario) == Done(number=2)


def test_a_search_that_ends_waits_for_trials_that_train_and_starts_none():
    async def scenario(board):
        await board.register_worker_group("slot")
        await answered(board, start("t"), done)
        call = await asked(board, Advance())
        command = await board.next_command("slot", None)
        listening = asyncio.ensure_future(board.wait_for_stop("slot", PaceReading()))
        await asyncio.sleep(0)
        stop = asyncio.ensure_future(board.stop_search())
        heard = await listening
        ended_early = stop.done()
        left = Left(number=command.number, reason=ExitReason.STOP, checkpoint="half way")
        waiting = asyncio.ensure_future(board.next_command("slot", left))
        await stop
        waiting.cancel()
        return heard, ended_early, await call, await board.ask(Advance())

    heard, ended_early, answer, afterwards = run(scenario)
    assert heard
    assert not ended_early
    assert answer.checkpoint == "half way"
    assert afterwards.reason == ExitReason.STOP


def test_slots_end_after_the_search_was_stopped():
    async def scenario(board):
        await board.register_worker_group("slot")
        await board.stop_search()
        return await answered(board, EndSlot(), done)

    assert run(scenario) == Done(number=1)


def test_a_group_that_dies_after_an_interim_checkpoint_resumes_there():
    async def scenario(board):
        await board.register_worker_group("slot")
        await answered(board, start("t"), done)
        leaving = lambda command: Left(number=command.number, reason=ExitReason.PREEMPTED, checkpoint="half way")  # noqa: E731
        await answered(board, Advance(), leaving)
        return await restarted(board)

    assert run(scenario).reported_step == 0  # and finds it in the trial's folder


async def started(board):
    await board.register_worker_group("slot")
    await answered(board, start("t"), done)


def test_an_extension_is_in_every_command_from_the_next_report_on():
    async def scenario(board):
        await started(board)
        await answered(board, Advance(), reports(3, 30))
        call = await asked(board, Advance())
        under_way = await board.next_command("slot", None)
        from_step = await board.extend("t", 200, reported_step=0)  # the caller may know less than the board
        waiting = asyncio.ensure_future(board.next_command("slot", reports(6, 60)(under_way)))
        await call
        waiting.cancel()
        commands = []
        await answered(board, Advance(), lambda command: commands.append(command) or reports(9, 90)(command))
        return from_step, under_way.extensions, commands[0].extensions

    given = (Extension(target_tokens=200, from_step=4),)
    assert run(scenario) == (4, (), given)


def test_a_trial_extended_while_it_trains_its_last_stretch_is_not_done():
    async def scenario(board):
        await started(board)
        await board.extend("t", 200, reported_step=0)
        longer = await answered(board, Advance(), reports(10, 100, done=True))
        whole = await answered(board, Advance(), reports(20, 200, done=True))
        return longer.progress.done, whole.progress.done, await board.extend("t", 300, reported_step=10)

    assert run(scenario) == (False, True, None)


def test_a_worker_that_listens_hears_of_every_trial_that_shall_end_once():
    async def scenario(board):
        waiting = asyncio.ensure_future(board.stop_requests(0))
        await asyncio.sleep(0)
        await board.stop_trial("t")
        await board.stop_trial("t")
        first = list(await asyncio.wait_for(waiting, timeout=5.0))
        waiting = asyncio.ensure_future(board.stop_requests(1))
        await asyncio.sleep(0)
        await board.stop_trial("u")
        return first, list(await asyncio.wait_for(waiting, timeout=5.0))

    assert run(scenario) == (["t"], ["t", "u"])


def test_a_board_made_anew_knows_what_its_trials_had_been_given():
    async def scenario():
        board = Board(KnownTrials(extensions={"t": (Extension(target_tokens=200, from_step=4),)}))
        await started(board)
        commands = []
        await answered(board, Advance(), lambda command: commands.append(command) or reports(9, 90)(command))
        return commands[0].extensions

    assert asyncio.run(scenario()) == (Extension(target_tokens=200, from_step=4),)


def test_a_search_that_ends_does_not_wait_for_a_slot_that_died_with_its_node():
    async def scenario(board):
        await board.register_worker_group("slot")
        call = await asked(board, Advance())
        await board.next_command("slot", None)
        await asyncio.wait_for(board.stop_search(), timeout=5.0)
        call.cancel()

    run(scenario)


# A board that has died, and begins anew


class Journaled:
    """What the search had when its board died: a trial with a report, extended, and one that shall end."""

    known = KnownTrials(
        extensions={"t": (Extension(target_tokens=200, from_step=4),)}, last_reports={"t": 3}, stop_requests=("u",)
    )
    resume = Resume(start=start("t"), reported_step=3)


def anew():
    return CommandBoard(Journaled.known, replaces=True)


def test_a_command_that_is_asked_for_again_is_carried_out_by_the_workers_that_live():
    async def scenario():
        board = anew()
        waiting = asyncio.ensure_future(board.next_command("slot", Done(number=6)))  # of the command before
        call = asyncio.ensure_future(board.submit("slot", Advance(number=7), Journaled.resume))
        command = await waiting
        following = asyncio.ensure_future(board.next_command("slot", reports(6, 60)(command)))
        answer = await call
        following.cancel()
        return command, answer, await board.submit("slot", Advance(number=7), Journaled.resume)

    command, answer, again = asyncio.run(scenario())
    assert (command.number, command.extensions) == (7, Journaled.known.extensions["t"])
    assert answer.progress.step == 6
    assert again == answer  # Ray may ask twice; it is carried out once


def test_an_answer_that_comes_before_its_command_waits_for_it():
    """The old board died while the workers trained: they answer the new one before their slot asks it again."""

    async def scenario():
        board = anew()
        waiting = asyncio.ensure_future(board.next_command("slot", reports(6, 60)(Advance(number=7))))
        await asyncio.sleep(0)
        answer = await asyncio.wait_for(board.submit("slot", Advance(number=7), Journaled.resume), timeout=5.0)
        call = asyncio.ensure_future(board.submit("slot", Advance(number=8), Journaled.resume.after(Advance(), answer)))
        following = await waiting
        call.cancel()
        return answer, following, await board.extend("t", 300, reported_step=0)

    answer, following, from_step = asyncio.run(scenario())
    assert (answer.progress.step, following.number) == (6, 8)
    assert from_step == 7


def test_an_answer_to_a_command_before_is_dropped():
    async def scenario():
        board = anew()
        waiting = asyncio.ensure_future(board.next_command("slot", Done(number=6)))
        await asyncio.sleep(0)
        call = asyncio.ensure_future(board.submit("slot", Advance(number=7), Journaled.resume))
        command = await waiting
        still = call.done()
        call.cancel()
        return command.number, still

    assert asyncio.run(scenario()) == (7, False)


def test_a_new_worker_group_waits_until_its_slot_says_which_trial_it_takes_over():
    async def scenario():
        board = anew()
        starting = asyncio.ensure_future(restarted(board))
        await asyncio.sleep(0.05)
        waited = not starting.done()
        call = asyncio.ensure_future(board.submit("slot", Advance(number=7), Journaled.resume))
        resume = await asyncio.wait_for(starting, timeout=5.0)
        call.cancel()
        return waited, resume

    waited, resume = asyncio.run(scenario())
    assert waited
    assert (resume.start.trial_id, resume.reported_step) == ("t", 3)
    assert resume.extensions == Journaled.known.extensions["t"]


def test_what_the_journal_has_of_stops_and_reports_is_known_to_it():
    async def scenario():
        board = anew()
        await board.note_report("t", 6)
        await board.note_extensions("v", Journaled.known.extensions["t"])
        reported = [await board.last_report(name) for name in ("t", "new")]
        return reported, await board.stop_requests(0), await board.extend("v", 300, reported_step=5)

    assert asyncio.run(scenario()) == ([6, 0], ["u"], 6)


def test_the_journal_says_what_a_board_must_know():
    stop = TrialInstructed(trial_id="t", instruction=Stop(), request_id="r", by="ann@desk", time=2.0)
    longer = stop.model_copy(update={"instruction": Journaled.known.extensions["t"][0], "request_id": "s"})
    told = TrialProgressed(
        trial_id="t", progress=progress(3, 1.0, target_tokens=10, checkpoint="x"), slot="s", time=3.0
    )
    known = KnownTrials.of(replay([trial_started("t"), told, longer, stop]))
    assert known == KnownTrials(extensions=Journaled.known.extensions, last_reports={"t": 3}, stop_requests=("t",))
    both = Journaled.known.updated(known)
    assert both.stop_requests == ("u", "t")
