"""The evaluations that a search chose its best checkpoint from, as they are kept in its folder."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from components.errors import InputError
from components.records.evaluation_record import ConversationScores, EvaluationRecord
from components.records.events import TrialHistory
from components.statistics.paired_bootstrap import LOSS
from components.statistics.selection import ChosenFrom, Selection
from components.storage.folder import Folder


def read_selection(
    search: Folder, histories: Iterable[TrialHistory], weights: Sequence[float], metric: str = LOSS
) -> Selection | None:
    """Returns the scores of every evaluation of every trial, whatever became of the trial; None if there was one alone.

    An evaluation counts as missing if no record of it was kept, or one of other conversations.

    Args:
        weights: of each conversation of the split, as the comparison will have them.
        metric: whose scores are read: what is judged, which may be another one than the search went by.
    """
    evaluated = [
        (history.trial_id, report.step)
        for history in histories
        for report in history.reports
        if math.isfinite(report.objective)
    ]
    if len(evaluated) < 2:
        return None
    found = [_scores(search, trial_id, step, metric) for trial_id, step in evaluated]
    kept = [scores.sums for scores in found if scores is not None and list(scores.weights) == list(weights)]
    return Selection(
        sums_CN=np.array(kept, dtype=float).reshape(len(kept), len(weights)),
        chosen_from=ChosenFrom(
            evaluations=len(evaluated),
            trials=len({trial_id for trial_id, _ in evaluated}),
            missing=len(evaluated) - len(kept),
        ),
    )


def _scores(search: Folder, trial_id: str, step: int, metric: str) -> ConversationScores | None:
    try:
        record = EvaluationRecord.read(search, trial_id, step)
    except InputError:
        return None
    return record.metrics.get(metric) if record is not None else None
