"""Where a slot and its workers meet: one command at a time per slot, and what a restarted worker group must resume.

The Tune side calls `call`; the first worker calls `attach` once per (re)start of its group and `next` for ever. A Ray
actor in production, but plain asyncio: tests drive it without Ray.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from components.cluster.slots.slot_result import ExitReason
from components.records.events import Extension, budget_at

POLL_SECONDS = 30.0  # well below the collective timeout of the workers that wait for the first one's broadcast
LISTEN_SECONDS = 5.0  # how often a group that trains is heard of
MAX_STRIKES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What the workers of a slot shall do next. `number` counts within the slot."""

    kind: Literal["start", "advance", "load", "exit", "wait"]
    number: int = 0
    trial_id: str = ""
    spec: dict[str, Any] | None = None
    warm_from: str | None = None
    checkpoint: str | None = None
    extensions: tuple[Extension, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of a command. `error` is the trial's own fault, the same on every worker; the slot lives on.

    With `ends_search` it is not the trial's: every other one would fail for the same reason.

    With `leave` the trial stands at the interim checkpoint `interim` (None: it had not begun) and trains no further here.
    """

    number: int
    progress: dict[str, Any] | None = None
    leave: ExitReason | None = None
    interim: str | None = None
    node: str | None = None
    error: str | None = None
    ends_search: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The trial a new worker group takes over: its start command and its last acknowledged checkpoint."""

    start: Command | None = None
    checkpoint: str | None = None
    extensions: tuple[Extension, ...] = ()


@dataclass(slots=True)
class _Slot:
    numbered: int = 0
    command: Command | None = None
    answer: Answer | None = None
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    resume: Resume = field(default_factory=Resume)
    reported_step: int = 0  # the trial's last acknowledged report
    spent: bool = False  # the trial has reported the end of its budget
    has_group: bool = False
    strikes: int = 0  # groups that died since the last acknowledged answer
    complaint: str = ""
    heard: float = -math.inf  # when its workers last said that they live

    @property
    def trial_id(self) -> str:
        """Whose trial runs here; none before its start is acknowledged."""
        return self.resume.start.trial_id if self.resume.start is not None else ""


class CommandBoard:
    """One per search. `extensions` and `ended`: what its trials had been given, and which should end, before it was made."""

    def __init__(
        self, extensions: Mapping[str, tuple[Extension, ...]] | None = None, ended: Sequence[str] = ()
    ) -> None:
        self._slots: dict[str, _Slot] = {}
        self._stopping = asyncio.Event()
        self._extensions = dict(extensions or {})
        self._ended = list(ended)
        self._another_end = asyncio.Event()

    async def stop(self) -> None:
        """The search is to end: trials leave their slots, and commands come to nothing. Returns once no trial trains.

        A slot whose node died never answers: those of which nothing has been heard are not waited for.
        """
        self._stopping.set()
        since = time.monotonic() - 3 * LISTEN_SECONDS
        states = [state for state in self._slots.values() if state.heard > since]
        training = [state for state in states if state.command and state.command.kind == "advance"]
        await asyncio.gather(*(state.answered.wait() for state in training))

    async def stopping(self, slot: str) -> bool:
        """The first worker, beside its training: whether the search is to end; waits for that at most LISTEN_SECONDS."""
        self._slots.setdefault(slot, _Slot()).heard = time.monotonic()
        return await _within(LISTEN_SECONDS, self._stopping)

    async def call(self, slot: str, command: Command) -> Answer:
        """Hands a command to the slot's workers and waits for what comes of it."""
        if self._stopping.is_set() and command.kind != "exit":
            return Answer(number=0, leave=ExitReason.STOP)
        state = self._slots.setdefault(slot, _Slot())
        if command.kind in ("start", "exit"):  # whatever the trial before may still be owed, it has ended
            state.resume, state.strikes = Resume(), 0
            state.reported_step, state.spent = 0, False
        state.numbered += 1
        extensions = self._extensions.get(state.trial_id, ()) if command.kind in ("advance", "load") else ()
        state.command = replace(command, number=state.numbered, extensions=extensions)
        state.answered.clear()
        state.asked.set()
        await state.answered.wait()
        assert state.answer is not None
        return state.answer

    async def extend(self, trial_id: str, target_tokens: int, reported_step: int) -> int | None:
        """A longer budget for what the trial trains after its next report. None: it has spent all it had, and ends.

        `reported_step` is that of its last report as the caller knows it. Returns the first step at which the new budget
        may begin. What the trial trains now keeps the budget it began with: a worker group that takes over, or a driver
        that resumes the search, trains it again in the same way.
        """
        slots = [state for state in self._slots.values() if state.trial_id == trial_id]  # it may have moved
        if any(state.spent for state in slots):
            return None
        from_step = max([reported_step, *(state.reported_step for state in slots)]) + 1
        given = self._extensions.get(trial_id, ())
        self._extensions[trial_id] = (*given, Extension(target_tokens=target_tokens, from_step=from_step))
        return from_step

    async def end(self, trial_id: str) -> None:
        """A person wants the trial to end: it shall report after the step it is at."""
        if trial_id not in self._ended:
            self._ended.append(trial_id)
        self._another_end.set()
        self._another_end = asyncio.Event()

    async def ended(self, seen: int) -> list[str]:
        """The first worker, beside its training: all trials that shall end, once they are more than `seen`.

        Waits for that at most POLL_SECONDS.
        """
        if len(self._ended) <= seen:
            await _within(POLL_SECONDS, self._another_end)
        return self._ended

    async def attach(self, slot: str) -> Resume:
        """A worker group has (re)started. A trial whose groups die again and again is given up."""
        state = self._slots.setdefault(slot, _Slot())
        if state.has_group:
            state.strikes += 1
        state.has_group = True
        if state.strikes > MAX_STRIKES:
            why = f": {state.complaint}" if state.complaint else ""
            self._give_up(state, f"its workers died {state.strikes} times at the same place{why}")
        return replace(state.resume, extensions=self._extensions.get(state.trial_id, ()))

    async def complain(self, slot: str, reason: str) -> None:
        """Any worker: the group cannot serve at all, and will restart."""
        self._slots[slot].complaint = reason

    async def blame(self, slot: str, number: int, reason: str) -> None:
        """Any worker: command `number` broke this worker only, so the group is out of step and must restart.

        Several workers may say so; after the first one another trial may have the slot, and it is not to blame.
        """
        state = self._slots[slot]
        if state.command is not None and state.command.number == number:
            self._give_up(state, reason)

    async def next(self, slot: str, answer: Answer | None) -> Command:
        """The first worker: takes the answer to the last command, waits for the next one (at most POLL_SECONDS).

        Nothing comes after an exit: that one is given back at once.
        """
        state = self._slots[slot]
        command = state.command
        if answer is not None and command is not None and answer.number == command.number:
            self._acknowledge(state, command, self._with_its_budget(state, answer))
            if command.kind == "exit":
                return command
        if not await _within(POLL_SECONDS, state.asked):
            return Command(kind="wait")
        assert state.command is not None
        return state.command

    def _with_its_budget(self, state: _Slot, answer: Answer) -> Answer:
        """A trial that was extended during its last stretch is not done, though its workers think so."""
        progress = answer.progress
        if progress is None or not progress["done"] or progress["diverged"]:
            return answer
        budget = budget_at(progress["step"], 0, self._extensions.get(state.trial_id, ()))
        return replace(answer, progress={**progress, "done": progress["target_tokens"] >= budget})

    def _acknowledge(self, state: _Slot, command: Command, answer: Answer) -> None:
        """The answer and the state it stands for become known in one go."""
        if answer.error is not None:
            state.resume = Resume()
        elif command.kind == "start":
            state.resume = Resume(start=command)
        elif command.kind == "load":
            state.resume = Resume(start=state.resume.start, checkpoint=command.checkpoint)
        elif answer.leave is not None:
            state.resume = Resume(start=state.resume.start, checkpoint=answer.interim)
        elif command.kind == "advance" and answer.progress is not None and answer.progress["checkpoint"]:
            state.resume = Resume(start=state.resume.start, checkpoint=answer.progress["checkpoint"])
            state.reported_step, state.spent = answer.progress["step"], answer.progress["done"]
        state.strikes, state.complaint = 0, ""
        self._reply(state, answer)

    def _give_up(self, state: _Slot, reason: str) -> None:
        state.resume = Resume()
        state.strikes = 0
        if state.command is not None:
            self._reply(state, Answer(number=state.command.number, error=reason))

    def _reply(self, state: _Slot, answer: Answer) -> None:
        state.command = None
        state.asked.clear()
        state.answer = answer
        state.answered.set()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether it happens in that time."""
    try:
        return await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
