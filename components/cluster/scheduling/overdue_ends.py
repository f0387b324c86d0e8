"""The ends that the journal demands of trials that it has as running: their driver died between the report and the end.

A resumed search carries them out first. Each is decided from what was known when the trial reported, so it is the end that
the dead driver would have recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from components.cluster.scheduling.comparable import EndingRule
from components.records.events import TrialEnded, TrialHistory, TrialState
from components.records.histories import TrialHistories


def overdue_ends(
    histories: TrialHistories, rules: Sequence[EndingRule], *, now: float, held: Callable[[str], float]
) -> Iterator[TrialEnded]:
    """Yields the ends, in the order of the trials.

    Args:
        rules: those of the search's scheduler.
        now: Unix seconds.
        held: worker-seconds of a trial that no event has yet.
    """
    for history in histories.values():
        if history.state is TrialState.RUNNING and (end := _end_of(histories, history, rules)) is not None:
            state, reason = end
            failed = state is TrialState.FAILED
            trial_id = history.trial_id
            yield TrialEnded(
                trial_id=trial_id, state=state, reason=reason, impossible=failed, held=held(trial_id), time=now
            )


def _end_of(
    histories: TrialHistories, history: TrialHistory, rules: Sequence[EndingRule]
) -> tuple[TrialState, str] | None:
    last = history.last
    if last is None:
        return None
    if last.diverged is not None:
        return TrialState.FAILED, last.diverged
    if last.done:
        return TrialState.COMPLETED, ""
    if history.stop is not None and histories.has_reported_since_its_stop(history.trial_id):
        return TrialState.STOPPED, history.stop.sentence
    known = histories.before(history.trial_id, last.step)
    for rule in rules:
        if rule.stops(known, history.trial_id, last):
            return TrialState.STOPPED, rule.reason
    return None
