"""Where a trial goes on, by what stands of its checkpoints."""

from __future__ import annotations

from components.storage.base import Folder
from components.storage.open import folder_at
from components.training.checkpoint_names import at_report


def resume_point(trial: Folder, last_report: str | None) -> Folder | None:
    """Where a trial whose last report left this checkpoint (None: it has not reported yet) goes on; None: at its start.

    An interim checkpoint after that report is further on, and nothing has been reported since.
    """
    whole = [name for name in _checkpoints(trial) if (trial / name).is_complete()]
    report = None if last_report is None else _still_there(folder_at(last_report), whole)
    after = f"{report.name if report else at_report(0)}+"
    interim = [name for name in whole if name.startswith(after)]
    return trial / interim[-1] if interim else report


def furthest_whole(wanted: Folder) -> Folder | None:
    """The checkpoint itself, or the last one before it that has arrived; None if none has.

    On a storage where checkpoints arrive after their reports, the workers may have died in between.
    """
    if wanted.complete_on_commit:
        return wanted
    before = [name for name in _checkpoints(wanted.parent) if name <= wanted.name]
    places = (wanted.parent / name for name in reversed(before))
    return next((place for place in places if place.is_complete()), None)


def _checkpoints(trial: Folder) -> list[str]:
    return [name for name in trial.list_names() if name.startswith("step_")]


def _still_there(checkpoint: Folder, whole: list[str]) -> Folder:
    """The checkpoint, or the trial's next one: Tune's pointer may be older than what the collector has left.

    Every checkpoint between the two was reported and journaled before the collector took it, so nothing is skipped.
    Raises FileNotFoundError if the trial has none at or after it and none is on its way.
    """
    later = [name for name in whole if name >= checkpoint.name and "+" not in name]
    if later:
        return checkpoint.parent / later[0]
    if not checkpoint.complete_on_commit:
        return checkpoint  # it was on its way; the workers go on before it
    raise FileNotFoundError(f"{checkpoint} is gone, and so is every later checkpoint of its trial")
