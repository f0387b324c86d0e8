"""The reports of a search, written to its folder and to its MLflow run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from pydantic import ValidationError

from components.experiment.report_marks import evaluation_marks, rungs_of
from components.records.events import TrialHistory
from components.records.search_cost import SearchCost
from components.reports.html_page import search_page
from components.reports.loss_curves import loss_curves_svg
from components.reports.rung_correlation import RungCorrelation, rung_correlations
from components.reports.search_summary import SearchSummary, trial_summaries
from components.search.decide_outcome import SearchOutcome
from components.search.prepare_search import PreparedSearch
from components.storage.folder import Folder
from components.storage.uri import without_secrets
from components.tracking.mlflow_runs import SearchRuns

REPORT, SUMMARY = "report.html", "summary.json"

Histories = Mapping[str, TrialHistory]


def summarize(
    prepared: PreparedSearch,
    histories: Histories,
    outcome: SearchOutcome,
    *,
    run_id: str,
    cost: SearchCost,
) -> SearchSummary:
    """`run_id` is the search's MLflow run."""
    return SearchSummary(
        experiment=prepared.experiment.name,
        search_id=prepared.search_id,
        outcome=outcome.outcome,
        message=outcome.message,
        seconds=time.monotonic() - prepared.began,
        data_digest=prepared.dataset.digest,
        data_reused=prepared.dataset.reused,
        folder=str(prepared.folder),
        tracking_uri=without_secrets(prepared.uri),
        run_id=run_id,
        metric=prepared.metric,
        trials=trial_summaries(histories.values(), budget=prepared.budget, metrics=prepared.experiment.search.metrics),
        metrics=prepared.experiment.search.metrics,
        cost=cost,
        rung_correlations=_rung_correlations(prepared, histories),
        best=outcome.best.trial_id if outcome.best else None,
        registry=outcome.registry,
        finalists=outcome.finalists,
    )


def _rung_correlations(prepared: PreparedSearch, histories: Histories) -> tuple[RungCorrelation, ...]:
    """By branch where trials compete within it."""
    experiment, budget = prepared.experiment, prepared.budget
    shared = getattr(experiment.search.scheduler, "brackets", "shared") == "shared"
    return rung_correlations(
        histories.values(),
        budget=budget,
        rungs=rungs_of(experiment, budget),
        evaluations=evaluation_marks(budget, experiment.trial.budget.evaluations),
        branches=[None] if shared else list(experiment.search.space),
    )


def write_page(prepared: PreparedSearch, summary: SearchSummary, histories: Histories, command: str) -> str:
    """Writes the page about the search into its folder. Returns the page's URI."""
    page = search_page(summary, curves=_curves(summary, histories), command=command)
    prepared.folder.write_text(REPORT, page)
    return str(prepared.folder / REPORT)


def log_reports(runs: SearchRuns, folder: Folder, summary: SearchSummary, histories: Histories) -> None:
    """Logs the page and the numbers, again if they are there. Raises what MLflow raises."""
    # Nats of different tokenizers have no smallest one.
    name, of = ("eval/bits_per_byte", "bits_per_byte") if summary.by_bytes else ("eval/loss", "eval_loss")
    losses = [loss for trial in summary.trials if (loss := getattr(trial, of)) is not None]
    runs.log_text(None, folder.read_text(REPORT), REPORT)
    runs.log_text(None, _curves(summary, histories), "eval_loss.svg")
    runs.log_text(None, summary.model_dump_json(indent=1), SUMMARY)
    runs.log_search_metrics({name: min(losses)} if losses else {})
    runs.log_cost(summary.cost)


def keep_summary(folder: Folder, summary: SearchSummary) -> None:
    """Writes what the search came to, once that is final: from here on only its record in MLflow may be missing."""
    folder.write_text(SUMMARY, summary.model_dump_json(indent=1) + "\n")


def kept_summary(folder: Folder) -> SearchSummary | None:
    """What the search came to for good; None if it has not yet."""
    if not folder.has_file(SUMMARY):
        return None
    try:
        return SearchSummary.model_validate_json(folder.read_text(SUMMARY))
    except ValidationError:
        return None  # JSON knows no infinity: a search with one concludes again, which changes nothing in the registry


def _curves(summary: SearchSummary, histories: Histories) -> str:
    base_loss = summary.registry.base_loss if summary.registry else None
    return loss_curves_svg(histories.values(), base_loss=base_loss)
