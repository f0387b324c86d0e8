"""The board between the slots of a search and their workers: one command at a time per slot, and the state to resume.

The slot calls `submit`. The first worker calls `register_worker_group` at each (re)start of its group, `take_over` once all
workers have said what they know of the group before, and `next_command` in a loop. What follows from a group's death for its
trial, deaths.py says. In production this is a Ray actor (restartable_board.py), but it is plain asyncio: tests run it without
Ray.

A board may die, and another one begin with what the journal has. Then Ray repeats the calls that were under way. So
slots number their commands and say with each what a new worker group would take over, and workers give an answer again.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

from components.cluster.slots.deaths import Deaths, Evidence, FewerRows, GiveUp
from components.cluster.slots.hang_watch import HangRule, HangWatch
from components.cluster.slots.known_trials import KnownTrials
from components.cluster.slots.protocol import (
    Advance,
    EndSlot,
    Failed,
    Left,
    Load,
    Reported,
    Resume,
    SlotAnswer,
    SlotCommand,
    Start,
    Wait,
    Witness,
)
from components.cluster.slots.seats import Seat, Seats
from components.cluster.slots.slot_result import ExitReason
from components.records.events import Extension, budget_at
from components.training.pace import PaceReading

POLL_SECONDS = 30.0  # how long a call waits before the first worker makes it again
GUESTS_SECONDS = 1.0  # how often a worker looks whether its guests live
HEARTBEAT_SECONDS = 5.0  # how often the first worker calls while its group trains


@dataclass(slots=True)
class _Slot:
    command: SlotCommand | None = None
    answer: SlotAnswer | None = None
    submitted: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    early_answer: SlotAnswer | None = None  # to a command that this board does not have, or not yet
    introduced: asyncio.Event = field(default_factory=asyncio.Event)  # the slot has said what `resume` is
    resume: Resume = field(default_factory=Resume)
    has_group: bool = False
    deaths: Deaths = field(default_factory=Deaths)
    in_doubt: bool = False  # the last death has not been judged: its evidence may be still to come
    restarts: int = 0  # worker groups that died since the trial's last report or start
    oom_kills: dict[str, int] = field(default_factory=dict)  # by the nodes of its workers
    group: list[Any] = field(default_factory=list)  # its workers' actors
    watch: HangWatch = field(default_factory=HangWatch)
    last_heartbeat: float = -math.inf

    @property
    def trial_id(self) -> str:
        """Of the trial that runs here; empty before its start is acknowledged."""
        return self.resume.start.trial_id if self.resume.start is not None else ""


class CommandBoard:
    """One per search.

    Args:
        known: what the journal had when the board began.
        replaces: another board of the same search has died, and slots and workers are at work.
        hangs: from when on workers are taken to hang.
    """

    def __init__(
        self, known: KnownTrials | None = None, *, replaces: bool = False, hangs: HangRule | None = None
    ) -> None:
        known, self._replaces, self._hangs = known or KnownTrials(), replaces, hangs or HangRule()
        self._slots: dict[str, _Slot] = {}
        self._search_stops = asyncio.Event()
        self._extensions, self._last_reports = dict(known.extensions), dict(known.last_reports)
        self._max_rows, self._stop_requests = dict(known.max_rows), list(known.stop_requests)
        self._new_stop_request = asyncio.Event()
        self.seats = Seats()
        self._new_guest = asyncio.Event()

    async def submit(self, slot: str, command: SlotCommand, resume: Resume, seat: Seat | None = None) -> SlotAnswer:
        """Hands a command to the slot's workers and returns their answer. A command that comes again is carried out once.

        `resume` is what a worker group would take over that started now. `seat` is the slot's in a shared Train run.
        """
        if seat is not None:
            self.seats.note(seat)
        if self._search_stops.is_set() and not isinstance(command, EndSlot):
            return Left(number=command.number, reason=ExitReason.STOP)
        state = self._slots.setdefault(slot, _Slot())
        if state.answer is not None and state.answer.number == command.number:
            return state.answer
        if state.command is None or state.command.number != command.number:
            self._take(state, command, resume)
        await state.answered.wait()
        assert state.answer is not None
        return state.answer

    async def next_command(self, slot: str, answer: SlotAnswer | None) -> SlotCommand:
        """For the first worker: takes the answer to the last command and returns the next one, or Wait after POLL_SECONDS.

        No command follows an Exit: after its answer the Exit itself is returned.
        """
        state = self._slots.setdefault(slot, _Slot())
        state.has_group = True
        command = state.command
        if command is None:
            state.early_answer = answer
        elif answer is not None and answer.number == command.number:
            self._acknowledge(state, command, answer)
            if isinstance(command, EndSlot):
                return command
        if not await _happens_within(POLL_SECONDS, state.submitted):
            return Wait()
        assert state.command is not None
        return state.command

    async def register_worker_group(self, slot: str) -> None:
        """For the first worker, when its group has (re)started, before anything can fail: every death is counted.

        A death without evidence is judged when its group's successor takes over: until then its workers may find some.
        """
        state = self._slots.setdefault(slot, _Slot())
        if state.has_group:
            state.restarts += 1
            explained = bool(state.deaths.evidence)
            if explained or state.in_doubt:
                self._judge(state)
            state.in_doubt = not explained
        state.has_group, state.group = True, []
        state.watch.forget_group()

    async def bear_witness(self, slot: str, witness: Witness) -> None:
        """For every worker of a new group, before it takes over."""
        state = self._slots.setdefault(slot, _Slot())
        state.group.append(witness.worker)
        state.deaths.evidence.extend(Evidence(reason=fault) for fault in witness.faults)
        node, kills = witness.node, witness.oom_kills
        if kills is not None and kills > state.oom_kills.get(node, kills):
            reason = "the kernel killed a process of its node's control group, whose memory had run out"
            state.deaths.evidence.append(Evidence(reason=reason, out_of_memory=True))
        if kills is not None:
            state.oom_kills[node] = kills

    async def take_over(self, slot: str) -> Resume:
        """For the first worker: the trial to go on with. A trial whose groups die too often has failed.

        A board that replaces another waits for the slot to say which trial that is.
        """
        state = self._slots.setdefault(slot, _Slot())
        if self._replaces:
            await state.introduced.wait()
        if state.in_doubt:
            self._judge(state)
            state.in_doubt = False
        start = state.resume.start
        if start is not None:
            start = replace(start, max_rows=self._max_rows.get(start.trial_id))
        return replace(state.resume, start=start, extensions=self._extensions.get(state.trial_id, ()))

    async def testify(self, slot: str, evidence: Evidence, number: int | None = None) -> None:
        """For any worker: why its group dies. `number`: of the command that it carries out; None: the group is starting."""
        state = self._slots.setdefault(slot, _Slot())
        if number is None or (state.command is not None and state.command.number == number):
            state.deaths.evidence.append(evidence)

    async def note_death(self, slot: str, evidence: Evidence | None) -> None:
        """For Train's controller: the group has died, or is ended because a part of it has. It was that of guests, too."""
        for each in (slot, *(seat.slot for seat in self.seats.guests(slot))):
            state = self._slots.setdefault(each, _Slot())
            state.watch.forget_group()
            if evidence is not None:
                state.deaths.evidence.append(evidence)

    async def lose_slot(self, slot: str, evidence: Evidence) -> None:
        """For a slot whose Train run has ended, so that its trial goes on in another one."""
        state = self._slots.setdefault(slot, _Slot())
        state.deaths.evidence.append(evidence)
        self._judge(state)

    async def watched_group(self, slot: str) -> tuple[list[Any], bool]:
        """For a slot: the actors of its workers (none if another board knew them), and whether they are to be ended."""
        state = self._slots.setdefault(slot, _Slot())
        hang = state.watch.verdict(time.monotonic(), self._hangs)
        if hang is not None:
            state.deaths.evidence.append(Evidence(reason=hang))
        return state.group, hang is not None

    async def report_worker_error(self, slot: str, number: int, reason: str, *, lost: bool = False) -> None:
        """For any worker: command `number` failed on this worker, perhaps not on the others, so the group must restart.

        `lost`: for no reason of the trial's own.
        Several workers may report it. After the first report another trial may run in the slot: it must not fail for this.
        """
        state = self._slots.setdefault(slot, _Slot())
        if state.command is not None and state.command.number == number:
            self._fail(state, reason, lost=lost)

    async def stop_search(self) -> None:
        """Makes all trials leave their slots; from now on commands are answered with Left. Returns once no trial trains.

        A slot whose node died never answers: slots without a recent heartbeat are not waited for.
        """
        self._search_stops.set()
        since = time.monotonic() - 3 * HEARTBEAT_SECONDS
        states = [state for state in self._slots.values() if state.last_heartbeat > since]
        training = [state for state in states if isinstance(state.command, Advance)]
        await asyncio.gather(*(state.answered.wait() for state in training))

    async def wait_for_stop(self, slot: str, reading: PaceReading) -> bool:
        """For the first worker, beside its training: whether the search stops, known after at most HEARTBEAT_SECONDS.

        `reading`: how its trial gets on.
        """
        state = self._slots.setdefault(slot, _Slot())
        state.last_heartbeat = time.monotonic()
        state.watch.note(reading, state.last_heartbeat)
        return await _happens_within(HEARTBEAT_SECONDS, self._search_stops)

    async def stop_trial(self, trial_id: str) -> None:
        """Makes a trial report after the step that it is at, so that it can end."""
        if trial_id not in self._stop_requests:
            self._stop_requests.append(trial_id)
        self._new_stop_request.set()
        self._new_stop_request = asyncio.Event()

    async def stop_requests(self, known: int) -> list[str]:
        """For the first worker, beside its training: ids of all trials that are to end, once there are more than `known`.

        Waits for that at most POLL_SECONDS.
        """
        if len(self._stop_requests) <= known:
            await _happens_within(POLL_SECONDS, self._new_stop_request)
        return self._stop_requests

    async def extend(self, trial_id: str, target_tokens: int, reported_step: int) -> int | None:
        """Gives a longer budget to what the trial trains after its next report.

        `reported_step` is that of its last report as the caller knows it. Returns the first step at which the new budget
        may begin; None if the trial has spent its whole budget, and ends. What the trial trains now keeps the budget that
        it began with, so that a new worker group or a resumed search repeats it exactly.
        """
        slots = [state for state in self._slots.values() if state.trial_id == trial_id]  # it may have changed its slot
        if any(state.resume.done for state in slots):
            return None
        from_step = max([reported_step, *(state.resume.reported_step or 0 for state in slots)]) + 1
        given = self._extensions.get(trial_id, ())
        self._extensions[trial_id] = (*given, Extension(target_tokens=target_tokens, from_step=from_step))
        return from_step

    async def note_extensions(self, trial_id: str, extensions: tuple[Extension, ...]) -> None:
        """All that the journal has of a trial's extensions, once it has a new one."""
        self._extensions[trial_id] = extensions

    async def note_report(self, trial_id: str, step: int) -> None:
        """The journal has a report of this step."""
        self._last_reports[trial_id] = step

    async def last_report(self, trial_id: str) -> int:
        """For a slot that begins a trial: the step of the last report that the journal has; 0 if there is none."""
        return self._last_reports.get(trial_id, 0)

    async def take_seat(self, wanted: Seat) -> tuple[Seat, Seat]:
        """For a slot whose trials are trained with others, before its first command: its seat, and its host's."""
        taken = self.seats.take(wanted)
        self._new_guest.set()
        self._new_guest = asyncio.Event()
        return taken

    async def keep_waiting(self) -> None:
        """A promise that is never kept, by which others see whether its owner lives (seats.Seat)."""
        await asyncio.Event().wait()

    async def leave_seat(self, slot: str) -> None:
        """For a slot that has ended its trials, and for others that have seen it dead."""
        self.seats.leave(slot)

    async def guests(self, host: str, known: frozenset[str]) -> list[Seat]:
        """For the worker of a shared run: its guests, once there is one that it does not know, or after GUESTS_SECONDS."""
        if all(seat.slot in known for seat in self.seats.guests(host)):
            await _happens_within(GUESTS_SECONDS, self._new_guest)
        return self.seats.guests(host)

    async def close_seats(self, host: str) -> bool:
        """For a host without a trial: whether its run may end. A new group of its workers has nothing to go on with there."""
        state = self._slots.setdefault(host, _Slot())
        state.resume = Resume()
        state.introduced.set()
        return self.seats.close(host)

    def _take(self, state: _Slot, command: SlotCommand, resume: Resume) -> None:
        if isinstance(command, Start | EndSlot):  # the trial before has ended, whatever it left here
            resume, state.deaths, state.restarts = Resume(), Deaths(), 0
            state.watch = HangWatch()
        state.resume = resume
        state.introduced.set()
        if isinstance(command, Start):
            command = replace(command, max_rows=self._max_rows.get(command.trial_id))
        if isinstance(command, Advance | Load):
            command = replace(command, extensions=self._extensions.get(state.trial_id, ()))
        state.command = command
        state.answered.clear()
        early, state.early_answer = state.early_answer, None
        if early is not None and early.number == command.number:
            self._acknowledge(state, command, early)
        else:
            state.submitted.set()

    def _with_extended_budget(self, state: _Slot, answer: SlotAnswer) -> SlotAnswer:
        """A trial that was extended while it trained to its last report is not done, though its workers say so."""
        if not isinstance(answer, Reported) or not answer.progress.done or answer.progress.diverged:
            return answer
        progress = answer.progress
        budget = budget_at(progress.step, 0, self._extensions.get(state.trial_id, ()))
        return replace(answer, progress=progress.model_copy(update={"done": progress.target_tokens >= budget}))

    def _acknowledge(self, state: _Slot, command: SlotCommand, answer: SlotAnswer) -> None:
        """Publishes the answer together with the state to resume that follows from it."""
        if isinstance(answer, Reported):
            answer, state.restarts = replace(answer, restarts=state.restarts), 0
            state.deaths.from_outside = 0
        answer = self._with_extended_budget(state, answer)
        state.resume = state.resume.after(command, answer)
        state.deaths = Deaths(from_outside=state.deaths.from_outside)
        self._answer(state, answer)

    def _judge(self, state: _Slot) -> None:
        """Draws the consequence of a worker group's death."""
        start = state.resume.start
        given = start.spec.batch.rows_per_micro_batch if start is not None else None
        match state.deaths.judge(self._max_rows.get(state.trial_id, given)):
            case FewerRows(rows=rows):
                self._max_rows[state.trial_id] = rows
            case GiveUp(reason=reason, lost=lost):
                self._fail(state, reason, lost=lost)

    def _fail(self, state: _Slot, reason: str, *, lost: bool = False) -> None:
        state.resume, state.deaths = Resume(), Deaths()
        if state.command is not None:
            self._answer(state, Failed(number=state.command.number, reason=reason, lost=lost))

    def _answer(self, state: _Slot, answer: SlotAnswer) -> None:
        state.command = None
        state.submitted.clear()
        state.answer = answer
        state.answered.set()


async def _happens_within(seconds: float, event: asyncio.Event) -> bool:
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
