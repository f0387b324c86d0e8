"""The state of a search at this moment: in a word, and in full for programs (`--watch --json`)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from components.records.driver_presence import DriverHeartbeat
from components.records.events import TrialHistory, TrialState, num_clones
from components.records.manifest import SearchManifest
from components.reports.leaderboard import ranked
from components.reports.search_summary import TrialSummary, trial_summaries


class SearchState(StrEnum):
    """What can be seen of a search from outside."""

    RUNNING = "running"
    ENDED = "ended"
    INTERRUPTED = "interrupted"  # its driver has ended before the search has; it can be resumed
    SILENT = "silent"  # its driver gives no sign of life


class SearchSnapshot(BaseModel):
    """`trials` are those that have started, the best first."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    search_id: str
    created: float
    finished: bool = Field(description="It has an outcome, and cannot be resumed.")
    driver: DriverHeartbeat | None = Field(
        description="Its last driver; it runs the search if its `beat` changes and it has no `outcome`."
    )
    planned: int = Field(description="How many trials there will be, clones included.")
    running: int
    ended: int
    best_trial: int | None
    trials: tuple[TrialSummary, ...]

    @classmethod
    def of(
        cls,
        manifest: SearchManifest,
        driver: DriverHeartbeat | None,
        histories: Mapping[str, TrialHistory],
        planned: int,
        budget: int,
    ) -> SearchSnapshot:
        """`planned`: how many trials the search set out with, without clones. `budget`: of each, in target tokens."""
        running = sum(history.state is TrialState.RUNNING for history in histories.values())
        best = next(iter(ranked(histories.values())), None)
        return cls(
            experiment=manifest.experiment.name,
            search_id=manifest.search_id,
            created=manifest.created,
            finished=manifest.finished,
            driver=driver,
            planned=planned + num_clones(histories.values()),
            running=running,
            ended=len(histories) - running,
            best_trial=best.started.number if best and best.best else None,
            trials=trial_summaries(histories.values(), budget=budget, metrics=manifest.experiment.search.metrics),
        )
