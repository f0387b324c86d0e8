"""The end of a search in MLflow: reports and outcome, and the proof that all of it equals the journal."""

from __future__ import annotations

from collections.abc import Sequence

from components.records.events import TrialEvent, replay
from components.records.on_message import OnMessage
from components.reports.search_summary import SearchSummary
from components.search.write_reports import log_reports
from components.storage.folder import Folder
from components.tracking.journal_proof import compare_with_journal
from components.tracking.mlflow_runs import SearchRuns


def record_end(
    runs: SearchRuns, folder: Folder, summary: SearchSummary, events: Sequence[TrialEvent], on_message: OnMessage
) -> None:
    """Logs the reports, says how MLflow compares with the journal, and ends the search's run last.

    A second call changes nothing. Raises what MLflow raises.
    """
    log_reports(runs, folder, summary, replay(events))
    on_message(compare_with_journal(runs, events).sentence)
    runs.end_search(summary.outcome.value)
