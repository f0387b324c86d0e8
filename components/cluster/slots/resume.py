"""The checkpoint from which a trial resumes, by what exists of its checkpoints."""

from __future__ import annotations

from components.storage.folder import Folder
from components.storage.open_folder import folder_at
from components.training.checkpoint_names import at_report


def resume_point(trial: Folder, last_report: str | None) -> Folder | None:
    """Returns the checkpoint from which a trial resumes; None: it begins again.

    `last_report` is the checkpoint of its last report (None: it has not reported yet). An interim checkpoint after that
    report is preferred: it has more steps, and no report came after it.
    """
    whole = [name for name in _checkpoints(trial) if (trial / name).is_complete()]
    report = None if last_report is None else _first_left(folder_at(last_report), whole)
    after = f"{report.name if report else at_report(0)}+"
    interim = [name for name in whole if name.startswith(after)]
    return trial / interim[-1] if interim else report


def latest_complete(wanted: Folder) -> Folder | None:
    """Returns the checkpoint itself, or the last one before it that is complete; None if none is.

    On an object store a checkpoint is uploaded after its report, and the workers may have died before the upload ended.
    """
    if wanted.complete_on_commit:
        return wanted
    before = [name for name in _checkpoints(wanted.parent) if name <= wanted.name]
    newest_first = (wanted.parent / name for name in reversed(before))
    return next((folder for folder in newest_first if folder.is_complete()), None)


def _checkpoints(trial: Folder) -> list[str]:
    return [name for name in trial.list_names() if name.startswith("step_")]


def _first_left(checkpoint: Folder, whole: list[str]) -> Folder:
    """Returns the checkpoint, or the trial's next one: Tune's pointer may be older than the checkpoints that were kept.

    Every checkpoint between the two was reported and journaled before it was deleted, so nothing is skipped.
    Raises FileNotFoundError if the trial has none at or after it and no upload had begun.
    """
    later = [name for name in whole if name >= checkpoint.name and "+" not in name]
    if later:
        return checkpoint.parent / later[0]
    if not checkpoint.complete_on_commit:
        return checkpoint  # its upload had not ended; the workers resume before it (latest_complete)
    raise FileNotFoundError(f"{checkpoint} is gone, and so is every later checkpoint of its trial")
