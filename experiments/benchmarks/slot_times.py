"""When trials ran in their slots, by the events of a search."""

from __future__ import annotations

from collections.abc import Iterable

from components.records.events import TrialEvent, TrialHistory, TrialProgressed


def last_reports_by_slot(events: Iterable[TrialEvent]) -> dict[str, dict[str, float]]:
    """By slot and trial id, in the order they ran: when the driver heard the trial's last report, just before it ended it."""
    slots: dict[str, dict[str, float]] = {}
    for event in events:
        if isinstance(event, TrialProgressed):
            slots.setdefault(event.slot, {})[event.trial_id] = event.time
    return slots


def first_step_began(history: TrialHistory) -> float:
    """Unix seconds, by the clock of the trial's first worker. The trial has reported."""
    step = history.reports[0].steps[0]
    return step.time - step.seconds
