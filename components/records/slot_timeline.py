"""Which trials ran on which slot, and when: from a search's journal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from components.records.events import TrialEnded, TrialEvent, TrialProgressed, TrialStarted


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A part of a trial that ended with a report, or with the trial: where and when (Unix seconds)."""

    number: int
    slot: str
    began: float
    ended: float


def stretches_of(records: Iterable[TrialEvent]) -> Iterable[Stretch]:
    """A trial that is resumed elsewhere is taken to have begun there when it last reported."""
    numbers: dict[str, int] = {}
    last: dict[str, float] = {}
    slots: dict[str, str] = {}
    for record in records:
        if isinstance(record, TrialStarted):
            numbers[record.trial_id] = record.number
        elif isinstance(record, TrialProgressed):
            slots[record.trial_id] = record.slot
        if isinstance(record, TrialProgressed | TrialEnded) and record.trial_id in slots:
            number, slot = numbers[record.trial_id], slots[record.trial_id]
            yield Stretch(number=number, slot=slot, began=last[record.trial_id], ended=record.time)
        last[record.trial_id] = record.time
