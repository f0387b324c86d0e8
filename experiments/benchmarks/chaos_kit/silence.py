"""How long trials did not report, beyond what is usual: what a fault has cost them."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence

from components.records.events import TrialEnded, TrialEvent, TrialProgressed

UNUSUAL = 3.0  # times the usual gap between two reports: shorter ones are no silence


def reports_by_trial(events: Iterable[TrialEvent]) -> dict[str, list[float]]:
    """Returns the times of each trial's reports, its end included, in seconds since the epoch, ascending."""
    times: dict[str, list[float]] = {}
    for event in events:
        if isinstance(event, TrialProgressed | TrialEnded):
            times.setdefault(event.trial_id, []).append(event.time)
    return times


def usual_gap(times: Iterable[Sequence[float]]) -> float:
    """Returns the median time between two reports of a trial, in seconds; 0 if there are none."""
    gaps = [later - earlier for each in times for earlier, later in itertools.pairwise(each)]
    return statistics.median(gaps) if gaps else 0.0


def seconds_lost(events: Sequence[TrialEvent], trial_ids: Iterable[str], since: float) -> float:
    """Returns how long the one of these trials that lost most was silent after `since`, beyond the usual gaps."""
    times = reports_by_trial(events)
    usual = usual_gap(times.values())
    return max((_silence(times.get(trial_id, []), since, usual) for trial_id in trial_ids), default=0.0)


def _silence(times: Sequence[float], since: float, usual: float) -> float:
    last_before = max((time for time in times if time <= since), default=since)
    gaps = itertools.pairwise([last_before, *(time for time in times if time > since)])
    lengths = [later - earlier for earlier, later in gaps]
    return sum(length - usual for length in lengths if length > UNUSUAL * usual)
