"""How a trial gets on: what is known of it from outside, so that a hang is noticed."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Phase = Literal["step", "batch of the evaluation"]
REMEMBERED = 64  # gaps, of which the median is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class PaceReading:
    """How far a trial has come. `marks` counts what has been done.

    `phase` is what is done now, again and again; None in between: while loading, saving, generating, or waiting for a disk,
    nobody knows how long is too long. `gap` is what one of these takes, typically, in seconds; None before the first is done.
    """

    marks: int = 0
    phase: Phase | None = None
    gap: float | None = None


class Pace:
    """One thread marks what it has done, and others may read."""

    def __init__(self) -> None:
        self._reading = PaceReading()
        self._gaps: dict[Phase, deque[float]] = {}
        self._marked_at = 0.0

    @contextlib.contextmanager
    def watched(self, phase: Phase) -> Iterator[None]:
        """Inside, a mark comes after each step or batch."""
        self._marked_at = time.monotonic()
        self._set(phase)
        try:
            yield
        finally:
            self._set(None)

    def mark(self) -> None:
        """One more is done. Called in a watched phase."""
        phase = self._reading.phase
        if phase is not None:
            now = time.monotonic()
            self._gaps.setdefault(phase, deque(maxlen=REMEMBERED)).append(now - self._marked_at)
            self._marked_at = now
            self._set(phase)

    def begin(self) -> None:
        """Another trial begins, with a pace of its own."""
        self._gaps = {}
        self._set(None)

    def read(self) -> PaceReading:
        return self._reading

    def _set(self, phase: Phase | None) -> None:
        gaps = self._gaps.get(phase) if phase is not None else None
        gap = statistics.median(gaps) if gaps else None
        self._reading = PaceReading(marks=self._reading.marks + 1, phase=phase, gap=gap)
