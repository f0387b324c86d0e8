"""The finalists of a search: the best configurations of each branch, which `search.confirm` repeats with new seeds.

All of it follows from the histories, so a resumed search asks for the same repeats, each once.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping

from components.experiment.spec import ConfirmSpec
from components.records.events import Clone, TrialHistory, TrialInstructed, TrialState

CONFIRM = "search.confirm"  # who asks for a repeat


def finalists(histories: Iterable[TrialHistory], top: int) -> dict[str, list[TrialHistory]]:
    """Returns the best `top` configurations of each branch, the best first; branches without a report are left out.

    Those that spent their budget come first. Repeats do not count, nor does what had other terms than all: trials that
    began with another's weights, and extended ones.
    """
    branches: dict[str, list[TrialHistory]] = {}
    for history in histories:
        if history.best is not None and history.state is not TrialState.FAILED and _competes(history):
            branches.setdefault(history.started.branch, []).append(history)
    return {branch: sorted(known, key=_rank)[:top] for branch, known in branches.items()}


def repeats_of(histories: Mapping[str, TrialHistory], finalist: TrialHistory) -> list[TrialHistory]:
    """Returns the finished repeats of a finalist that have a report, in the order of their seeds."""
    asked = [histories[clone.trial_id] for clone in finalist.clones if clone.repeat and clone.trial_id in histories]
    ended = [each for each in asked if each.state is TrialState.COMPLETED and each.best is not None]
    return sorted(ended, key=lambda repeat: repeat.started.spec.seed)


def due_repeats(
    histories: Mapping[str, TrialHistory], confirm: ConfirmSpec, *, planned: int, now: float
) -> Iterator[TrialInstructed]:
    """Yields the repeats that nobody has asked for yet, once every other trial has ended.

    Args:
        planned: how many trials the sampler makes.
    """
    others = [history for history in histories.values() if not history.started.repeat]
    asked = [clone for history in others for clone in history.clones if not clone.repeat]
    if len(others) < planned + len(asked) or any(history.state is TrialState.RUNNING for history in others):
        return
    number = planned + sum(len(history.clones) for history in others)
    for known in finalists(others, confirm.top).values():
        for finalist in known:
            repeated = {clone.spec.seed for clone in finalist.clones if clone.repeat}
            first = finalist.started.spec.seed + 1
            for seed in sorted(set(range(first, first + confirm.seeds)) - repeated):
                number += 1
                yield _repeat(finalist, seed, number, now)


def _repeat(finalist: TrialHistory, seed: int, number: int, now: float) -> TrialInstructed:
    clone = Clone(
        trial_id=uuid.uuid4().hex[:8],
        number=number,
        branch=finalist.started.branch,
        spec=finalist.started.spec.model_copy(update={"seed": seed}),
        varied={**finalist.started.varied, "seed": seed},
        repeat=True,
    )
    request = f"{CONFIRM}-{finalist.trial_id}-{seed}"
    return TrialInstructed(trial_id=finalist.trial_id, instruction=clone, request_id=request, by=CONFIRM, time=now)


def _competes(history: TrialHistory) -> bool:
    return history.on_equal_terms and not history.started.repeat


def _rank(history: TrialHistory) -> tuple[bool, float, int]:
    assert history.best is not None
    return history.state is not TrialState.COMPLETED, history.best.objective, history.started.number
