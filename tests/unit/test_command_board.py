"""The board between a slot and its workers, without Ray: it is plain asyncio."""

import asyncio

from components.cluster.slots.command_board import Answer, Command, CommandBoard
from components.cluster.slots.slot_result import ExitReason
from components.records.events import Extension


def progress(checkpoint, step=1, target_tokens=10, done=False):
    return {"checkpoint": checkpoint, "step": step, "target_tokens": target_tokens, "done": done, "diverged": None}


async def answered(board, asked, answer_of):
    """One round: the slot asks, the first worker takes the command and answers it."""
    call = asyncio.ensure_future(board.call("slot", asked))
    await asyncio.sleep(0)
    command = await board.next("slot", None)
    waiting = asyncio.ensure_future(board.next("slot", answer_of(command)))
    answer = await call
    waiting.cancel()
    return answer


def run(scenario):
    board = CommandBoard()
    return asyncio.run(scenario(board))


def test_an_answer_reaches_whoever_asked():
    async def scenario(board):
        await board.attach("slot")
        return await answered(board, Command(kind="advance"), lambda command: Answer(number=command.number))

    assert run(scenario) == Answer(number=1)


def test_workers_that_leave_wait_for_nothing_more():
    async def scenario(board):
        await board.attach("slot")
        call = asyncio.ensure_future(board.call("slot", Command(kind="exit")))
        await asyncio.sleep(0)
        command = await board.next("slot", None)
        last = await asyncio.wait_for(board.next("slot", Answer(number=command.number)), timeout=5.0)
        return await call, last.kind

    assert run(scenario) == (Answer(number=1), "exit")


def test_a_new_worker_group_is_told_the_trial_and_its_last_acknowledged_checkpoint():
    async def scenario(board):
        await board.attach("slot")
        start = Command(kind="start", trial_id="t", spec={"a": 1})
        await answered(board, start, lambda command: Answer(number=command.number))
        for name in ("one", "two"):
            await answered(
                board,
                Command(kind="advance"),
                lambda command, name=name: Answer(number=command.number, progress=progress(name)),
            )
        return await board.attach("slot")

    resume = run(scenario)
    assert (resume.start.trial_id, resume.checkpoint) == ("t", "two")


def test_a_command_whose_workers_died_is_given_to_the_next_group():
    async def scenario(board):
        await board.attach("slot")
        call = asyncio.ensure_future(board.call("slot", Command(kind="advance")))
        await asyncio.sleep(0)
        lost = await board.next("slot", None)
        await board.attach("slot")
        again = await board.next("slot", None)
        waiting = asyncio.ensure_future(board.next("slot", Answer(number=again.number)))
        await call
        waiting.cancel()
        return lost, again

    lost, again = run(scenario)
    assert lost == again


def test_a_trial_that_kills_its_workers_three_times_is_given_up_with_the_reason():
    async def scenario(board):
        await board.attach("slot")
        await answered(board, Command(kind="start", trial_id="t"), lambda command: Answer(number=command.number))
        call = asyncio.ensure_future(board.call("slot", Command(kind="advance")))
        await asyncio.sleep(0)
        for _ in range(3):
            await board.next("slot", None)
            resume = await board.attach("slot")
        return await call, resume

    answer, resume = run(scenario)
    assert answer.error == "its workers died 3 times at the same place"
    assert resume.start is None


def test_an_error_of_one_worker_ends_the_trial_and_is_not_resumed():
    async def scenario(board):
        await board.attach("slot")
        await answered(board, Command(kind="start", trial_id="t"), lambda command: Answer(number=command.number))
        call = asyncio.ensure_future(board.call("slot", Command(kind="advance")))
        await asyncio.sleep(0)
        await board.blame("slot", 2, "out of memory")
        return await call, await board.attach("slot")

    answer, resume = run(scenario)
    assert answer.error == "out of memory"
    assert resume.start is None


def test_groups_that_die_before_they_serve_fail_the_trial_with_the_last_error():
    async def scenario(board):
        call = asyncio.ensure_future(board.call("slot", Command(kind="start", trial_id="t")))
        await asyncio.sleep(0)
        for _ in range(4):  # the first one, and three that replace it
            await board.attach("slot")
            await board.complain("slot", "FileNotFoundError: no such model")
        return await call

    assert run(scenario).error == "its workers died 3 times at the same place: FileNotFoundError: no such model"


def test_a_group_that_dies_between_two_trials_does_not_resume_the_one_that_ended():
    async def scenario(board):
        await board.attach("slot")
        await answered(board, Command(kind="start", trial_id="first"), lambda command: Answer(number=command.number))
        call = asyncio.ensure_future(board.call("slot", Command(kind="start", trial_id="second")))
        await asyncio.sleep(0)
        resume = await board.attach("slot")
        command = await board.next("slot", None)
        waiting = asyncio.ensure_future(board.next("slot", Answer(number=command.number)))
        answer = await call
        waiting.cancel()
        return resume, command, answer

    resume, command, answer = run(scenario)
    assert resume.start is None
    assert (command.trial_id, answer.error) == ("second", None)


def test_the_next_trial_is_not_blamed_for_what_the_one_before_did_to_a_second_worker():
    async def scenario(board):
        await board.attach("slot")
        broken = asyncio.ensure_future(board.call("slot", Command(kind="start", trial_id="first")))
        await asyncio.sleep(0)
        number = (await board.next("slot", None)).number
        await board.blame("slot", number, "out of memory")
        await broken
        call = asyncio.ensure_future(board.call("slot", Command(kind="start", trial_id="second")))
        await asyncio.sleep(0)
        await board.blame("slot", number, "out of memory")
        command = await board.next("slot", None)
        waiting = asyncio.ensure_future(board.next("slot", Answer(number=command.number)))
        answer = await call
        waiting.cancel()
        return answer

    assert run(scenario).error is None


def test_a_search_that_ends_waits_for_trials_that_train_and_starts_none():
    async def scenario(board):
        await board.attach("slot")
        await answered(board, Command(kind="start", trial_id="t"), lambda command: Answer(number=command.number))
        call = asyncio.ensure_future(board.call("slot", Command(kind="advance")))
        await asyncio.sleep(0)
        command = await board.next("slot", None)
        listening = asyncio.ensure_future(board.stopping("slot"))
        await asyncio.sleep(0)
        stop = asyncio.ensure_future(board.stop())
        heard = await listening
        ended_early = stop.done()
        left = Answer(number=command.number, leave=ExitReason.STOP, interim="half way")
        waiting = asyncio.ensure_future(board.next("slot", left))
        await stop
        waiting.cancel()
        return heard, ended_early, await call, await board.call("slot", Command(kind="advance"))

    heard, ended_early, answer, afterwards = run(scenario)
    assert heard
    assert not ended_early
    assert answer.interim == "half way"
    assert afterwards.leave == ExitReason.STOP


def test_slots_end_after_the_search_was_stopped():
    async def scenario(board):
        await board.attach("slot")
        await board.stop()
        return await answered(board, Command(kind="exit"), lambda command: Answer(number=command.number))

    assert run(scenario) == Answer(number=1)


def test_a_group_that_dies_after_an_interim_checkpoint_resumes_there():
    async def scenario(board):
        await board.attach("slot")
        await answered(board, Command(kind="start", trial_id="t"), lambda command: Answer(number=command.number))
        leaving = lambda command: Answer(number=command.number, leave=ExitReason.PREEMPTED, interim="half way")  # noqa: E731
        await answered(board, Command(kind="advance"), leaving)
        return await board.attach("slot")

    assert run(scenario).checkpoint == "half way"


def reports(step, target_tokens, done=False):
    """What a first worker answers that has trained up to here."""
    reached = progress("somewhere", step, target_tokens, done)
    return lambda command: Answer(number=command.number, progress=reached)


async def started(board):
    await board.attach("slot")
    start = Command(kind="start", trial_id="t", spec={})
    await answered(board, start, lambda command: Answer(number=command.number))


def test_an_extension_is_in_every_command_from_the_next_report_on():
    async def scenario(board):
        await started(board)
        await answered(board, Command(kind="advance"), reports(3, 30))
        call = asyncio.ensure_future(board.call("slot", Command(kind="advance")))
        await asyncio.sleep(0)
        under_way = await board.next("slot", None)
        from_step = await board.extend("t", 200, reported_step=0)  # the caller may know less than the board
        waiting = asyncio.ensure_future(board.next("slot", reports(6, 60)(under_way)))
        await call
        waiting.cancel()
        commands = []
        await answered(
            board, Command(kind="advance"), lambda command: commands.append(command) or reports(9, 90)(command)
        )
        return from_step, under_way.extensions, commands[0].extensions

    given = (Extension(target_tokens=200, from_step=4),)
    assert run(scenario) == (4, (), given)


def test_a_trial_extended_while_it_trains_its_last_stretch_is_not_done():
    async def scenario(board):
        await started(board)
        await board.extend("t", 200, reported_step=0)
        longer = await answered(board, Command(kind="advance"), reports(10, 100, done=True))
        whole = await answered(board, Command(kind="advance"), reports(20, 200, done=True))
        return longer.progress["done"], whole.progress["done"], await board.extend("t", 300, reported_step=10)

    assert run(scenario) == (False, True, None)


def test_a_worker_that_listens_hears_of_every_trial_that_shall_end_once():
    async def scenario(board):
        waiting = asyncio.ensure_future(board.ended(0))
        await asyncio.sleep(0)
        await board.end("t")
        await board.end("t")
        first = list(await asyncio.wait_for(waiting, timeout=5.0))
        waiting = asyncio.ensure_future(board.ended(1))
        await asyncio.sleep(0)
        await board.end("u")
        return first, list(await asyncio.wait_for(waiting, timeout=5.0))

    assert run(scenario) == (["t"], ["t", "u"])


def test_a_board_made_anew_knows_what_its_trials_had_been_given():
    async def scenario():
        board = CommandBoard({"t": (Extension(target_tokens=200, from_step=4),)})
        await started(board)
        commands = []
        await answered(
            board, Command(kind="advance"), lambda command: commands.append(command) or reports(9, 90)(command)
        )
        return commands[0].extensions

    assert asyncio.run(scenario()) == (Extension(target_tokens=200, from_step=4),)


def test_a_search_that_ends_does_not_wait_for_a_slot_that_died_with_its_node():
    async def scenario(board):
        await board.attach("slot")
        call = asyncio.ensure_future(board.call("slot", Command(kind="advance")))
        await asyncio.sleep(0)
        await board.next("slot", None)
        await asyncio.wait_for(board.stop(), timeout=5.0)
        call.cancel()

    run(scenario)
