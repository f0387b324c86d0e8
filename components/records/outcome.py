"""How a search has ended."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """The values are read by people and by programs: in `--json`, in driver.json and as MLflow tags."""

    CHAMPION = "champion"
    NOT_PROMOTED = "not promoted"
    FINISHED = "finished"  # without the registry
    NO_TRIAL_SUCCEEDED = "no trial succeeded"
    LOST = "lost"  # no trial succeeded, and some were lost with their slots, for no reason of their own
    NOT_PROVEN = "not proven"
    TRACKING_AWAY = "tracking away"
    INTERRUPTED = "interrupted"
    TERMINATED = "terminated"  # by SIGTERM

    @property
    def resumable(self) -> bool:
        """Whether the search can go on."""
        return self in RESUMABLE


RESUMABLE = frozenset(
    {Outcome.LOST, Outcome.NOT_PROVEN, Outcome.TRACKING_AWAY, Outcome.INTERRUPTED, Outcome.TERMINATED}
)
