"""How a search stands at this moment, for machines (`--watch --json`)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, Field

from components.records.events import TrialHistory, num_clones
from components.records.heartbeat import DriverHeartbeat
from components.records.manifest import SearchManifest
from components.reports.leaderboard import best_loss, ranked
from components.reports.summary import TrialSummary, trial_summaries


class SearchState(BaseModel):
    """`trials` are those that have started, the best first."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    search_id: str
    created: float
    finished: bool = Field(description="Its verdict stands.")
    driver: DriverHeartbeat | None = Field(description="Its last driver; one that has no `outcome` and beats is at it.")
    planned: int = Field(description="Trials there will be, clones included.")
    running: int
    ended: int
    best_trial: int | None
    trials: tuple[TrialSummary, ...]

    @classmethod
    def of(
        cls, manifest: SearchManifest, driver: DriverHeartbeat | None, histories: Mapping[str, TrialHistory], drawn: int
    ) -> SearchState:
        """`drawn`: how many trials the search set out with."""
        running = sum(history.state == "running" for history in histories.values())
        best = next(iter(ranked(histories.values())), None)
        return cls(
            experiment=manifest.experiment.name,
            search_id=manifest.search_id,
            created=manifest.created,
            finished=manifest.finished,
            driver=driver,
            planned=drawn + num_clones(histories.values()),
            running=running,
            ended=len(histories) - running,
            best_trial=best.started.number if best and math.isfinite(best_loss(best)) else None,
            trials=trial_summaries(histories.values()),
        )
