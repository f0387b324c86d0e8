"""Trials that are trained together on one base: each as it would be alone, and they come and go between steps.

Each member may have a thread of its own. One of them computes at a time, and they take turns in the order in which they ask.
The one that trains makes steps of all members that are within an interval, so none waits for another that does something
else.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import nn

from components.errors import InputError
from components.experiment.spec import LoraMethod
from components.models.shared_base import SharedBase
from components.records.events import Progress
from components.training.joint_step import step_together
from components.training.signals import NO_SIGNALS, TrialSignals
from components.training.trainer import Trainer
from components.training.turns import Turns

Said = Progress | None | Exception  # by a member at the end of its interval


class CoTraining:
    """Outside of its methods a member is trained, saved and loaded inside `alone`, as if there were no other."""

    def __init__(self, base: SharedBase) -> None:
        self.base = base
        self._turns = Turns()
        self._members: dict[Trainer, TrialSignals | None] = {}  # its signals, while it is within an interval
        self._said: dict[Trainer, Said] = {}  # and not been heard yet

    @property
    def members(self) -> tuple[Trainer, ...]:
        return tuple(self._members)

    @property
    def within(self) -> tuple[Trainer, ...]:
        """The members that are within an interval."""
        return tuple(trainer for trainer, signals in self._members.items() if signals is not None)

    def add(self, method: LoraMethod, seed: int) -> nn.Module:
        """Returns a new trial's model on the base, as SharedBase.add does."""
        with self._turns.mine():
            return self.base.add(method, seed)

    def join(self, trainer: Trainer) -> None:
        """Takes in a trial whose model is one of the base's, and that could be trained beside others (shared_slots.py).

        Raises InputError if it differs from these in what one pass has only one of.
        """
        with self._turns.mine():
            for other in self._members:
                if reason := why_apart(trainer, other):
                    raise InputError(f"trials with {reason} cannot be trained in one pass; train them in other slots")
            with self.base.alone(trainer.model):
                if trainer.scored.whole_logits is None:
                    trainer.scored.look_at_head()
            self._members[trainer] = None

    def leave(self, trainer: Trainer) -> None:
        """Forgets a member and its weights. The others go on as if it had never been there."""
        with self._turns.mine():
            self._members.pop(trainer)
            self._said.pop(trainer, None)
            self.base.remove(trainer.model)

    def forget(self, model: nn.Module) -> None:
        """Of a trial that could not begin."""
        with self._turns.mine():
            self.base.remove(model)

    @contextlib.contextmanager
    def alone(self, model: nn.Module) -> Iterator[None]:
        """Inside, this trial's model computes, is saved and is loaded as if it were the only one. No other trial goes on."""
        with self._turns.mine(), self.base.alone(model):
            yield

    def advance(self, trainer: Trainer, signals: TrialSignals = NO_SIGNALS) -> Progress | None:
        """Trains a member to its next report, as Trainer.advance does. Each member's thread may call it at the same time.

        A member that has diverged, is done, is preempted or raises is to leave, or begins another interval. An error of a
        step is one of all members that it was made for; one of an evaluation is that member's alone.
        """
        self.begin(trainer, signals)
        while True:
            with self._turns.mine():
                if trainer not in self._said:
                    self._step()
                if trainer in self._said:
                    return _heard(self._said.pop(trainer))

    def begin(self, trainer: Trainer, signals: TrialSignals = NO_SIGNALS) -> None:
        """A member begins an interval: from now on steps are made of it, too, up to its next report."""
        with self._turns.mine(), self.base.alone(trainer.model):
            trainer.begin_interval(signals)
            self._members[trainer] = signals

    def step(self) -> dict[Trainer, Progress | None]:
        """Makes one step of all members that are within an interval. Returns what those say whose interval ends with it."""
        with self._turns.mine():
            self._step()
            said, self._said = self._said, {}
            return {trainer: _heard(word) for trainer, word in said.items()}

    def _step(self) -> None:
        """Makes a step of the members that want one, and notes what is said after it, or before the first."""
        within = {trainer: signals for trainer, signals in self._members.items() if signals is not None}
        wanting = [trainer for trainer in within if trainer.wants_step]
        said = self._ends_in_step(wanting, within) if wanting else {}
        for trainer in within:
            if trainer not in said and not trainer.wants_step:
                said[trainer] = self._report(trainer)
        self._members |= dict.fromkeys(said)  # they are within none until their next report is asked for
        self._said |= said

    def _ends_in_step(self, wanting: Sequence[Trainer], signals: Mapping[Trainer, TrialSignals]) -> dict[Trainer, Said]:
        """Makes a step. Returns the members that come no further than it."""
        said: dict[Trainer, Said] = {}
        with contextlib.ExitStack() as watched:
            for trainer in wanting:
                watched.enter_context(trainer.pace.watched("step"))
            try:
                diverged = step_together(self.base, wanting)
            except Exception as error:  # noqa: BLE001 - each member's thread raises it
                return dict.fromkeys(wanting, error)
            for trainer in wanting:
                if trainer in diverged:
                    said[trainer] = trainer.diverged(diverged[trainer])
                    continue
                trainer.heed(signals[trainer])
                trainer.pace.mark()
        return said

    def _report(self, trainer: Trainer) -> Said:
        if trainer.preempted:
            return None
        try:
            with self.base.alone(trainer.model):
                return trainer.report()
        except Exception as error:  # noqa: BLE001 - its own thread raises it
            return error


def _heard(word: Said) -> Progress | None:
    if isinstance(word, Exception):
        raise word
    return word


class SharedTraining:
    """The one CoTraining of a process, whose base is loaded by the thread that needs it first."""

    def __init__(self) -> None:
        self._loading = threading.Lock()
        self._group: CoTraining | None = None

    @property
    def current(self) -> CoTraining:
        if self._group is None:
            raise RuntimeError("no base model has been loaded")
        return self._group

    def group(self, load: Callable[[], SharedBase]) -> CoTraining:
        with self._loading:
            if self._group is None:
                self._group = CoTraining(load())
        return self._group


def why_apart(one: Trainer, other: Trainer) -> str:
    """Returns in what two trials differ that one pass has only one of; empty if nothing."""
    pairs = {
        "precision": (one.spec.precision, other.spec.precision),
        "gradient_checkpointing": (one.spec.gradient_checkpointing, other.spec.gradient_checkpointing),
        "attention": (one.scored.attention, other.scored.attention),
    }
    unlike = [f"{name} {first} and {second}" for name, (first, second) in pairs.items() if first != second]
    return ", ".join(unlike)
