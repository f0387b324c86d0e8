"""Which trials of a search go on when it is resumed: from the journal alone."""

from __future__ import annotations

from collections.abc import Iterable

from components.records.events import TrialHistory, TrialState


def is_lost(history: TrialHistory) -> bool:
    """Whether a trial ended with its slot or its node, for no reason of its own."""
    return history.state is TrialState.FAILED and not history.impossible


def has_succeeded(history: TrialHistory) -> bool:
    """Whether a trial has ended with a checkpoint that can become the champion."""
    return history.state in (TrialState.COMPLETED, TrialState.STOPPED) and history.best is not None


def lost_trials(histories: Iterable[TrialHistory]) -> list[TrialHistory]:
    """Returns the lost trials for which the search can go on: none once another has succeeded."""
    known = list(histories)
    return [] if any(map(has_succeeded, known)) else list(filter(is_lost, known))


def trials_to_go_on(histories: Iterable[TrialHistory], planned: int) -> list[TrialHistory]:
    """Returns the trials that a resumed search takes up again, in the order of their numbers.

    Those are the ones that were running. Where no trial succeeded they are the lost ones, once all others have had their
    turn.

    Args:
        planned: how many trials the sampler makes.
    """
    known = sorted(histories, key=lambda history: history.started.number)
    running = [history for history in known if history.state is TrialState.RUNNING]
    begun = sum(history.started.parent is None for history in known)
    return running if running or begun < planned else lost_trials(known)
