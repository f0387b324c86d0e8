"""What a running trial asks for after every step: whether to leave its workers or to end, and its budget's extensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from components.records.events import Extension


class TrialSignals(Protocol):
    """Each worker asks its own; the workers then agree, since a signal reaches one of them sooner than another."""

    @property
    def extensions(self) -> Sequence[Extension]:
        """All extensions that the trial has been given so far."""
        ...

    def preempted(self) -> bool:
        """Whether the trial must leave these workers before its next report: a node is leaving, or the search ends."""
        ...

    def stop_requested(self) -> bool:
        """Whether the trial must end after this step, with a report."""
        ...


@dataclass(frozen=True, slots=True)
class NoSignals:
    """The signals of a trial that nothing interrupts."""

    extensions: Sequence[Extension] = ()

    def preempted(self) -> bool:
        return False

    def stop_requested(self) -> bool:
        return False


NO_SIGNALS = NoSignals()
