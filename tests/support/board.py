"""A slot and its first worker, who talk over a command board without Ray."""

import asyncio
from dataclasses import replace

from components.cluster.slots.command_board import CommandBoard
from components.cluster.slots.protocol import Done, Reported, Resume, Start
from components.experiment.spec import TrialSpec
from tests.support.records import progress


def start(trial_id, **spec):
    return Start(trial_id=trial_id, spec=TrialSpec(**spec))


def done(command):
    return Done(number=command.number)


class Board(CommandBoard):
    """The board, and its slot: that numbers its commands, and knows what a new worker group would take over."""

    number, resume = 0, Resume()

    async def ask(self, command):
        self.number += 1
        answer = await self.submit("slot", replace(command, number=self.number), self.resume)
        self.resume = self.resume.after(command, answer)
        return answer


async def restarted(board, evidence=None):
    """A new worker group, and what it takes over. `evidence` is what the one before has said of its death."""
    if evidence is not None:
        await board.testify("slot", evidence)
    await board.register_worker_group("slot")
    return await board.take_over("slot")


async def asked(board, command):
    """The slot's call, of which the board has heard."""
    call = asyncio.ensure_future(board.ask(command))
    await asyncio.sleep(0)
    return call


async def answered(board, wanted, answer_of):
    """One round: the slot asks, the first worker takes the command and answers it."""
    call = await asked(board, wanted)
    command = await board.next_command("slot", None)
    waiting = asyncio.ensure_future(board.next_command("slot", answer_of(command)))
    answer = await call
    waiting.cancel()
    return answer


def reports(step, target_tokens, done=False):
    """What a first worker answers that has trained up to here."""
    reached = progress(step, 1.0, target_tokens=target_tokens, checkpoint="somewhere", done=done)
    return lambda command: Reported(number=command.number, progress=reached)
