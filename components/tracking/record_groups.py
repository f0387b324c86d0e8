"""Reports of one trial that wait for MLflow go in one request, however many trials report in between."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from components.records.events import TrialEvent, TrialProgressed

MAX_POINTS = 1000  # MLflow's limit of a request
WINDOW = 2000  # records among which those of the same trial are looked for


class RecordGroups:
    """A queue. `take` returns the first record and, if that is a report, those of its trial that follow.

    A trial's records keep their order, for its next start, end or instruction ends the group. One trial's reports may come
    before other trials' earlier records; in MLflow each trial is a run of its own.
    """

    def __init__(self, records: Iterable[TrialEvent] = ()) -> None:
        self._waiting = deque(records)

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, record: TrialEvent) -> None:
        self._waiting.append(record)

    def take(self) -> list[TrialEvent]:
        """Raises IndexError if nothing waits."""
        first = self._waiting.popleft()
        if not isinstance(first, TrialProgressed):
            return [first]
        group: list[TrialEvent] = [first]
        places, points = [], _num_points(first)
        for place, record in zip(range(WINDOW), self._waiting, strict=False):
            if record.trial_id != first.trial_id:
                continue
            if not isinstance(record, TrialProgressed) or (points := points + _num_points(record)) > MAX_POINTS:
                break
            group.append(record)
            places.append(place)
        for place in reversed(places):
            del self._waiting[place]
        return group


def _num_points(record: TrialProgressed) -> int:
    """At most; see metric_points.py."""
    rung = record.progress.rung
    sampled = 0 if rung is None else 1 + len(rung.scores)
    return 4 * len(record.progress.steps) + len(record.progress.scores) + sampled + 9
