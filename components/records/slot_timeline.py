"""Which trials ran on which slot, and when: from a search's journal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from components.records.events import TrialEnded, TrialEvent, TrialProgressed, TrialStarted


@dataclass(frozen=True, kw_only=True)
class SlotInterval:
    """Where a trial was, and when (Unix seconds), until a report or its end."""

    number: int
    slot: str
    began: float
    ended: float


def slot_intervals(events: Iterable[TrialEvent]) -> Iterator[SlotInterval]:
    """A trial that is resumed in another slot counts as having begun there at its last report."""
    numbers: dict[str, int] = {}
    last: dict[str, float] = {}
    slots: dict[str, str] = {}
    for event in events:
        if isinstance(event, TrialStarted):
            numbers[event.trial_id] = event.number
        elif isinstance(event, TrialProgressed):
            slots[event.trial_id] = event.slot
        if isinstance(event, TrialProgressed | TrialEnded) and event.trial_id in slots:
            number, slot = numbers[event.trial_id], slots[event.trial_id]
            yield SlotInterval(number=number, slot=slot, began=last[event.trial_id], ended=event.time)
        last[event.trial_id] = event.time
