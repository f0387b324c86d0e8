"""Trials that are trained together on one base: each as it would be alone, and they come and go between steps."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from components.errors import InputError
from components.experiment.spec import LoraMethod, TrialSpec
from components.models.shared_base import NOT_BY_TOKENS, SharedBase
from components.records.events import Progress
from components.training.joint_step import step_together
from components.training.signals import NO_SIGNALS, TrialSignals
from components.training.trainer import Trainer
from components.training.workers import Workers


class CoTraining:
    """Outside of its methods a member is trained, saved and loaded inside `alone`, as if there were no other."""

    def __init__(self, base: SharedBase) -> None:
        self.base = base
        self._members: dict[Trainer, bool] = {}  # whether it is within an interval

    @property
    def members(self) -> tuple[Trainer, ...]:
        return tuple(self._members)

    def join(self, trainer: Trainer) -> None:
        """Takes in a trial whose model is one of the base's. Raises InputError if it cannot be trained beside the others."""
        if reason := why_alone(trainer.spec, trainer.workers):
            raise InputError(f"{reason}; train it alone")
        for other in self._members:
            if reason := why_apart(trainer, other):
                raise InputError(f"trials with {reason} cannot be trained in one pass; train them in other slots")
        with self.alone(trainer):
            if trainer.scored.whole_logits is None:
                trainer.scored.look_at_head()
        self._members[trainer] = False

    def leave(self, trainer: Trainer) -> None:
        """Forgets a member and its weights. The others go on as if it had never been there."""
        del self._members[trainer]
        self.base.remove(trainer.model)

    def alone(self, trainer: Trainer) -> contextlib.AbstractContextManager[None]:
        """Inside, this trial's model computes, is saved and is loaded as if it were the only one."""
        return self.base.alone(trainer.model)

    def advance(self, signals: Mapping[Trainer, TrialSignals]) -> dict[Trainer, Progress | None]:
        """Trains all members until at least one of them has something to say: its report, or None if it is preempted.

        As Trainer.advance has it. The others are between two steps, and go on in the next call; a member that has diverged,
        is done or is preempted is to leave before that. Members without signals are interrupted by nothing.
        """
        for trainer, within in self._members.items():
            if not within:
                with self.alone(trainer):
                    trainer.begin_interval(signals.get(trainer, NO_SIGNALS))
                self._members[trainer] = True
        said: dict[Trainer, Progress | None] = {}
        while self._members and not said:
            said = self._step(signals)
        for trainer in said:
            self._members[trainer] = False
        return said

    def _step(self, signals: Mapping[Trainer, TrialSignals]) -> dict[Trainer, Progress | None]:
        """Makes a step of the members that want one. Returns what has been said after it, or before the first."""
        said: dict[Trainer, Progress | None] = {}
        wanting = [trainer for trainer in self._members if trainer.wants_step]
        with contextlib.ExitStack() as watched:
            for trainer in wanting:
                watched.enter_context(trainer.pace.watched("step"))
            diverged = step_together(self.base, wanting) if wanting else {}
            for trainer in wanting:
                if trainer in diverged:
                    said[trainer] = trainer.diverged(diverged[trainer])
                    continue
                trainer.heed(signals.get(trainer, NO_SIGNALS))
                trainer.pace.mark()
        for trainer in self._members:
            if trainer not in said and not trainer.wants_step:
                said[trainer] = self._report(trainer)
        return said

    def _report(self, trainer: Trainer) -> Progress | None:
        if trainer.preempted:
            return None
        with self.alone(trainer):
            return trainer.report()


def why_alone(spec: TrialSpec, workers: Workers) -> str:
    """Returns why a trial can be trained beside no other one; empty if it can."""
    if not isinstance(spec.method, LoraMethod):
        return "full fine-tuning changes the base, which other trials would train on"
    if spec.method.dora:
        return NOT_BY_TOKENS
    if spec.method.quantize is not None:
        return f"method.quantize: {spec.method.quantize} computes its own products, which take one adapter at a time"
    if workers.count > 1:
        return f"a trial with {workers.count} workers adds gradients up over them, trial by trial"
    return ""


def why_apart(one: Trainer, other: Trainer) -> str:
    """Returns in what two trials differ that one pass has only one of; empty if nothing."""
    pairs = {
        "precision": (one.spec.precision, other.spec.precision),
        "gradient_checkpointing": (one.spec.gradient_checkpointing, other.spec.gradient_checkpointing),
        "attention": (one.scored.attention, other.scored.attention),
    }
    unlike = [f"{name} {first} and {second}" for name, (first, second) in pairs.items() if first != second]
    return ", ".join(unlike)
