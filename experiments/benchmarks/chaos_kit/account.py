"""What a search lost, doubled or left open: its journal and its MLflow runs against each other and an undisturbed search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields

from mlflow import MlflowClient
from mlflow.entities import Run

from components.records.events import TrialHistory, TrialProgressed, replay
from components.records.journal import Journal
from components.storage.folder import Folder
from components.tracking.mlflow_runs import TRIAL_TAG
from experiments.benchmarks.chaos_kit.disturbed_search import Disturbed

LOSS, STEP_LOSS = "eval/loss", "train/step_loss"
ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True, kw_only=True)
class Account:
    """Counts. All are zero for a search of which nothing was lost."""

    points_lost: int  # steps and reports of the undisturbed search that the journal lacks
    points_doubled: int  # reports that the journal has twice
    points_lost_in_mlflow: int  # of the journal's
    points_doubled_in_mlflow: int
    runs_lost: int
    runs_doubled: int
    runs_left_open: int
    losses_different: int  # trials whose final loss or configuration is not the undisturbed search's
    champions_different: int
    processes_left: int
    files_left: int  # half-written ones, and checkpoints between two reports

    @property
    def is_clean(self) -> bool:
        return not any(getattr(self, each.name) for each in fields(self))


def account_of(search: Disturbed, undisturbed: Disturbed, tracking_uri: str) -> Account:
    histories, expected = _by_number(search.folder), _by_number(undisturbed.folder)
    lines = [event for event in Journal(search.folder).read() if isinstance(event, TrialProgressed)]
    client = MlflowClient(tracking_uri)
    parent = client.get_run(search.summary["run_id"])
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'", max_results=1000
    )
    runs = {run.data.tags[TRIAL_TAG]: run for run in children}
    points = [_points(client, runs[each.trial_id], each) for each in histories.values() if each.trial_id in runs]
    return Account(
        points_lost=sum(
            len(_points_of(wanted) - _points_of(histories[number])) if number in histories else len(_points_of(wanted))
            for number, wanted in expected.items()
        ),
        points_doubled=len(lines) - len({(event.trial_id, event.progress.step) for event in lines}),
        points_lost_in_mlflow=sum(lost for lost, _ in points),
        points_doubled_in_mlflow=sum(doubled for _, doubled in points),
        runs_lost=len({each.trial_id for each in histories.values()} - runs.keys()),
        runs_doubled=len(children) - len(runs),
        runs_left_open=sum(run.info.status not in ENDED for run in [parent, *children]),
        losses_different=sum(
            number not in histories or not _equal(histories[number], wanted) for number, wanted in expected.items()
        ),
        champions_different=int(_champion(search) != _champion(undisturbed)),
        processes_left=len(search.left_running),
        files_left=len(list(_unfinished(search.folder))),
    )


def _by_number(folder: Folder) -> dict[int, TrialHistory]:
    return {history.started.number: history for history in replay(Journal(folder).read()).values()}


def _points_of(history: TrialHistory) -> set[tuple[str, int]]:
    """Steps and reports."""
    steps = {(STEP_LOSS, step.step) for report in history.reports for step in report.steps}
    return steps | {(LOSS, report.step) for report in history.reports}


def _points(client: MlflowClient, run: Run, history: TrialHistory) -> tuple[int, int]:
    """Returns (lost, doubled) of a trial's run against its history."""
    logged = Counter(
        (name, point.step) for name in (LOSS, STEP_LOSS) for point in client.get_metric_history(run.info.run_id, name)
    )
    return len(_points_of(history) - logged.keys()), sum(count - 1 for count in logged.values())


def _equal(history: TrialHistory, wanted: TrialHistory) -> bool:
    if history.last is None or wanted.last is None:
        return history.last is wanted.last
    same = history.started.varied == wanted.started.varied and history.state == wanted.state
    return same and abs(history.last.eval_loss - wanted.last.eval_loss) <= 1e-5


def _champion(search: Disturbed) -> tuple[str, object]:
    return search.summary["outcome"], search.summary["trials"][0]["number"]  # they are ranked


def _unfinished(folder: Folder) -> Iterable[str]:
    checkpoints = folder / "checkpoints"
    for trial in checkpoints.list_names():
        for name in (checkpoints / trial).list_names():
            if name.startswith(".") or "+" in name:
                yield f"{trial}/{name}"
