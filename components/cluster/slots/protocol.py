"""What a slot and its workers say to each other over the command board: commands, answers, and the state to resume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from components.cluster.slots.slot_result import ExitReason
from components.experiment.spec import TrialSpec
from components.records.events import Extension, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbered:
    """`number` counts the commands of a slot, from 1; the slot sets it. An answer has the number of its command."""

    number: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Start(_Numbered):
    """Begin a trial of a branch, with the weights of `warm_from` if that is given.

    `max_rows`: so many in a micro-batch at most, where more did not fit into memory; the board sets it.
    """

    trial_id: str
    spec: TrialSpec
    branch: str = ""
    warm_from: str | None = None
    max_rows: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Load(_Numbered):
    """Bring the trial to its last report, at `reported_step` (0: it has none), or to an interim checkpoint after it.

    `extensions` are all that it has been given; the board sets them.
    """

    reported_step: int
    extensions: tuple[Extension, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance(_Numbered):
    """Train the trial to its next report. `extensions` as in Load."""

    extensions: tuple[Extension, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EndSlot(_Numbered):
    """Finish all uploads and end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait(_Numbered):
    """Ask again: there is no command yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Done(_Numbered):
    """The command has been carried out; it has no result."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reported(_Numbered):
    """The trial has trained to its next report. `node` and `device` are the first worker's.

    `restarts`: how many groups of its workers died on the way; the board sets it.
    """

    progress: Progress
    node: str | None = None
    device: str | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Left(_Numbered):
    """The trial trains no further here. It can be resumed from its interim checkpoint (None: it had not begun)."""

    reason: ExitReason
    checkpoint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Numbered):
    """The trial cannot go on, for the same reason on every worker; the slot can serve other trials.

    With `ends_search` the reason is not the trial's own: every other trial would fail for it. With `lost` nor is it, and the
    search may go on with the trial later.
    """

    reason: str
    ends_search: bool = False
    lost: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What a worker of a new group tells of itself, and what its node knows of the death of the group before.

    `worker` is its actor's handle, by which it can be ended from outside. `oom_kills`: how many processes the kernel has
    killed there because memory had run out; None if it does not count. `faults` are those that ended processes, in words.
    """

    worker: Any
    node: str
    oom_kills: int | None = None
    faults: Sequence[str] = ()


SlotCommand = Start | Load | Advance | EndSlot | Wait
SlotAnswer = Done | Reported | Left | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """The trial that a new worker group takes over: its start command, and its last acknowledged report.

    `reported_step`: None while the trial has only been started; 0 if it has a checkpoint, perhaps, but no report. `done`:
    its budget was spent at that report.
    """

    start: Start | None = None
    reported_step: int | None = None
    done: bool = False
    extensions: tuple[Extension, ...] = ()

    def after(self, command: SlotCommand, answer: SlotAnswer) -> Resume:
        """Returns what a new worker group takes over once a command has been answered."""
        match command, answer:
            case _, Failed():
                return Resume()
            case Start(), _:
                return Resume(start=command)
            case Load(), _:
                return replace(self, reported_step=command.reported_step)
            case _, Left():
                return replace(self, reported_step=self.reported_step or 0)
            case Advance(), Reported(progress=progress) if progress.checkpoint:
                return replace(self, reported_step=progress.step, done=progress.done)
        return self
