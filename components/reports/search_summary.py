"""The outcome of a search, for programs (`--json`) and as the source of every report for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict, Field

from components.experiment.spec import MetricSpec
from components.records.events import TARGET_TOKENS, TrialHistory, TrialState
from components.records.objectives import pareto_front
from components.records.outcome import Outcome
from components.records.search_cost import SearchCost, TrialCost
from components.registry.result import RegistryResult
from components.reports.finalists import FinalistsVerdict
from components.reports.leaderboard import (
    best_loss,
    counted,
    general_loss,
    in_bits,
    last_rung,
    ranked,
    spent,
    worker_seconds,
)
from components.reports.rung_correlation import RungCorrelation


class TrialSummary(BaseModel):
    """One row of the leaderboard. Losses are null where there is none: JSON knows no infinity."""

    model_config = ConfigDict(frozen=True)

    number: int
    trial_id: str
    branch: str
    method: str
    varied: dict[str, object]
    state: TrialState
    reason: str
    target_tokens: int
    counted: str = Field(TARGET_TOKENS, description="What `target_tokens` counts: target bytes if bases differ.")
    eval_loss: float | None = Field(description="Nats per target of the best checkpoint.")
    rung_loss: float | None = Field(
        None, description="Where there is none: nats per target over the sample of conversations at its last rung."
    )
    bits_per_byte: float | None = Field(None, description="The same loss by bytes: other tokenizers' compare with it.")
    scores: dict[str, float] = Field({}, description="Scores of what the best checkpoint says, by name.")
    worker_seconds: float = Field(description="Of training and evaluation.")
    cost: TrialCost = Field(description="All worker-seconds that it held, by what they went into.")
    general_loss: float | None = Field(
        None, description="Nats per token of general text at the end of its budget (bits per byte if bases differ)."
    )
    checkpoint: str | None
    max_rows: int | None = Field(None, description="In a micro-batch, where batch.rows_per_micro_batch did not fit.")
    parent: str | None = Field(None, description="The trial it was cloned from.")
    instructions: tuple[str, ...] = Field((), description="Commands of people that were carried out while it ran.")
    on_front: bool | None = Field(
        None, description="Whether no other trial beats it in search.metrics; null without them."
    )

    @classmethod
    def of(cls, history: TrialHistory, *, on_front: bool | None = None) -> TrialSummary:
        loss, sampled = best_loss(history), last_rung(history)
        return cls(
            number=history.started.number,
            trial_id=history.trial_id,
            branch=history.started.branch,
            method=history.started.spec.method.kind,
            varied=history.started.varied,
            state=history.state,
            reason=history.reason,
            target_tokens=spent(history),
            counted=counted([history]),
            bits_per_byte=in_bits(history),
            eval_loss=loss if math.isfinite(loss) else None,
            rung_loss=sampled.eval_loss if sampled else None,
            scores=history.best.scores if history.best else {},
            worker_seconds=worker_seconds(history),
            cost=TrialCost.of(history),
            general_loss=general_loss(history),
            checkpoint=history.best.checkpoint if history.best else None,
            max_rows=history.max_rows,
            parent=history.started.parent,
            instructions=tuple(instructed.sentence for instructed in history.instructions),
            on_front=on_front,
        )


class SearchSummary(BaseModel):
    """`trials` are ranked, the best first."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    search_id: str
    outcome: Outcome
    message: str = Field(description="The outcome in a sentence.")
    seconds: float = Field(description="From the start of this process's part of the search to its verdict.")
    data_digest: str
    data_reused: bool
    folder: str
    tracking_uri: str
    run_id: str = Field(description="MLflow's, of the search.")
    metric: MetricSpec = Field(MetricSpec(), description="What the trials are ranked by.")
    cost: SearchCost = Field(SearchCost(), description="Over all resumes.")
    rung_correlations: tuple[RungCorrelation, ...] = Field(
        (), description="How the order of trials at each rung and evaluation agrees with their order at the end."
    )
    trials: tuple[TrialSummary, ...]
    best: str | None = Field(None, description="The trial_id of the one that was chosen.")
    finalists: FinalistsVerdict | None = Field(None, description="The best of each branch, compared.")
    metrics: tuple[str, ...] = Field((), description="Those of search.metrics, which trials trade off.")
    registry: RegistryResult | None

    @property
    def counted(self) -> str:
        """What budgets count."""
        return next((trial.counted for trial in self.trials if trial.counted != TARGET_TOKENS), TARGET_TOKENS)

    @property
    def by_bytes(self) -> bool:
        """Whether losses compare in bits per byte only: there are several base models."""
        return self.counted != TARGET_TOKENS


def trial_summaries(
    histories: Iterable[TrialHistory], *, budget: int, metrics: Sequence[str] = ()
) -> tuple[TrialSummary, ...]:
    """`budget` is that of each trial, in target tokens; `metrics` are those of `search.metrics`."""
    histories = list(histories)
    front = pareto_front(histories, metrics, budget)
    return tuple(
        TrialSummary.of(history, on_front=history.trial_id in front if metrics else None)
        for history in ranked(histories)
    )
