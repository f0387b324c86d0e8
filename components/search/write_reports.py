"""The reports of a search, written to its folder and to its MLflow run."""

from __future__ import annotations

import time
from collections.abc import Mapping

from components.conversations.preview.mask_preview import preview_html
from components.data.prepare import PreparedDataset
from components.data.preview_records import stored_records, totals_of
from components.experiment.report_marks import evaluation_marks, rungs_of
from components.records.events import TrialHistory
from components.records.on_message import OnMessage
from components.records.search_cost import SearchCost
from components.reports.html_page import search_page
from components.reports.loss_curves import loss_curves_svg
from components.reports.rung_correlation import RungCorrelation, rung_correlations
from components.reports.search_summary import SearchSummary, trial_summaries
from components.search.decide_outcome import SearchOutcome
from components.search.prepare_search import PreparedSearch
from components.storage.uri import without_secrets
from components.tracking.mlflow_access import MLFLOW_ERRORS, reason_of
from components.tracking.mlflow_runs import SearchRuns

REPORT = "report.html"
PREVIEWED = 20  # conversations on the page that shows the mask


def log_inputs(runs: SearchRuns, prepared: PreparedSearch) -> None:
    """Logs what the search trains on: the data sets, and a page that shows the mask."""
    dataset, experiment = prepared.dataset, prepared.experiment
    for number, base in enumerate(prepared.opened.bases, start=1):
        name = f"{experiment.name}-base-{number}" if number > 1 else experiment.name
        runs.log_data(name, str(experiment.data.train), _digests(base.dataset), base.dataset.counts)
    records = stored_records(dataset.train, PREVIEWED)
    title = f"{experiment.name}: what is trained on"
    runs.log_text(None, preview_html(records, prepared.decode, title, totals_of(dataset)), "mask_preview.html")


def _digests(dataset: PreparedDataset) -> dict[str, str]:
    digests = {"train": dataset.train_digest, "eval": dataset.eval_digest}
    return digests if dataset.verdict_digest is None else {**digests, "verdict": dataset.verdict_digest}


def summarize(
    prepared: PreparedSearch,
    histories: Mapping[str, TrialHistory],
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
        registry=outcome.registry,
        finalists=outcome.finalists,
    )


def _rung_correlations(prepared: PreparedSearch, histories: Mapping[str, TrialHistory]) -> tuple[RungCorrelation, ...]:
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


def write_reports(
    prepared: PreparedSearch,
    runs: SearchRuns,
    summary: SearchSummary,
    histories: Mapping[str, TrialHistory],
    command: str,
    on_message: OnMessage,
) -> str:
    """Writes the page and the numbers. Marks the search as finished unless it can be resumed. Returns the page's URI."""
    base_loss = summary.registry.base_loss if summary.registry else None
    curves = loss_curves_svg(histories.values(), base_loss=base_loss)
    page = search_page(summary, curves=curves, command=command)
    prepared.folder.write_text(REPORT, page)
    if not summary.outcome.resumable:
        prepared.finish()
    # Nats of different tokenizers have no smallest one.
    name, of = ("eval/bits_per_byte", "bits_per_byte") if summary.by_bytes else ("eval/loss", "eval_loss")
    losses = [loss for trial in summary.trials if (loss := getattr(trial, of)) is not None]
    try:
        runs.log_text(None, page, REPORT)
        runs.log_text(None, curves, "eval_loss.svg")
        runs.log_text(None, summary.model_dump_json(indent=1), "summary.json")
        runs.log_search_metrics({name: min(losses)} if losses else {})
        runs.log_cost(summary.cost)
        runs.end_search(summary.outcome.value)
    except MLFLOW_ERRORS as error:
        on_message(f"MLflow did not take the reports ({reason_of(error)}); they are in {prepared.folder}")
    return str(prepared.folder / REPORT)
