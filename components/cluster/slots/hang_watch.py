"""Whether the workers of a slot hang: by how long nothing has been done, beside the trial's own pace."""

from __future__ import annotations

from dataclasses import dataclass, field

from components.training.pace import PaceReading, Phase


@dataclass(frozen=True, slots=True, kw_only=True)
class HangRule:
    """Workers hang that have done nothing for `factor` times what a step takes, typically, and for `seconds` at least.

    Before the first step nobody knows what one takes: until then, for `seconds_at_first`.
    """

    seconds: float = 180.0
    factor: float = 30.0
    seconds_at_first: float = 3600.0

    def limit(self, gap: float | None) -> float:
        return self.seconds_at_first if gap is None else max(self.seconds, self.factor * gap)


@dataclass(slots=True)
class HangWatch:
    """Of one slot. Times are in seconds, by any clock that only runs forward.

    The first worker's readings come with its heartbeats. A worker that is stopped sends none: then its last one counts.
    """

    reading: PaceReading = field(default_factory=PaceReading)
    moved_at: float = 0.0
    suspected: bool = False
    gaps: dict[Phase, float] = field(default_factory=dict)  # of the trial, also from the groups before

    def note(self, reading: PaceReading, now: float) -> None:
        if reading.phase is not None and reading.gap is not None:
            self.gaps[reading.phase] = reading.gap
        if (reading.marks, reading.phase) != (self.reading.marks, self.reading.phase):
            self.reading, self.moved_at, self.suspected = reading, now, False

    def forget_group(self) -> None:
        """The group has ended or begins: nothing is under way."""
        self.reading, self.suspected = PaceReading(), False

    def verdict(self, now: float, rule: HangRule) -> str | None:
        """Returns why the workers are taken to hang; None if they are not.

        Asked twice, some seconds apart: where the watch itself was held up, readings that came meanwhile are heard first.
        """
        phase = self.reading.phase
        if phase is None:
            return None
        gap, waited = self.gaps.get(phase), now - self.moved_at
        if waited <= rule.limit(gap):
            return None
        if not self.suspected:
            self.suspected = True
            return None
        self.suspected, self.moved_at = False, now
        pace = "and it was the first one" if gap is None else f"{waited / gap:.0f} times its own pace of {gap:.2g} s"
        return f"no {phase} for {waited:.0f} s, {pace}"
