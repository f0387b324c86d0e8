"""The checkpoint from which a trial goes on: the journal says how far it has come, its checkpoints how to get there."""

from __future__ import annotations

from components.storage.folder import Folder
from components.training.checkpoint_names import is_checkpoint, reported_step


def newest_checkpoint(trial: Folder, last_reported: int) -> Folder | None:
    """Returns the trial's newest whole checkpoint that is not newer than its last report; None: it begins again.

    One between two reports counts as the report before it. What lies between the checkpoint and the report is trained again
    and not reported. What a checkpoint has beyond the journal's last report is trained again, too, and reported: so no point
    comes twice, and none is lost.

    Args:
        last_reported: the step of the last report that the journal has; 0 if it has none.
    """
    names = [name for name in trial.list_names() if is_checkpoint(name) and reported_step(name) <= last_reported]
    newest_first = (trial / name for name in reversed(names))
    return next((folder for folder in newest_first if folder.is_complete()), None)
