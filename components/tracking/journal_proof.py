"""Proves that MLflow holds what the journal of a search says: reads every run and every point back, and compares."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from mlflow.entities import Run

from components.records.events import NO_STANDING, TrialEvent, TrialHistory, TrialProgressed, TrialState, replay
from components.tracking.find_runs import runs_where
from components.tracking.metric_points import points_of, standing_after
from components.tracking.mlflow_runs import PARENT_TAG, STATUS_OF_END, TRIAL_TAG, SearchRuns

READERS = 8  # concurrent reads: each metric of each trial is a request
MAX_NAMED = 5  # differences in the sentence

Points = Mapping[tuple[str, int], float]  # value by metric and step


@dataclass(frozen=True, kw_only=True)
class JournalProof:
    """What the comparison came to. `points` counts those of the journal; a difference names its run, metric and step."""

    trials: int
    points: int
    differences: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        of = f"{self.trials} trial{'s' if self.trials != 1 else ''}, {self.points:,} points"
        if not self.differences:
            return f"MLflow equals the journal: {of}"
        more = len(self.differences) - MAX_NAMED
        named = "; ".join(self.differences[:MAX_NAMED]) + (f"; and {more} more" if more > 0 else "")
        return f"MLflow differs from the journal ({of}): {named}"


def compare_with_journal(runs: SearchRuns, events: Sequence[TrialEvent]) -> JournalProof:
    """Reads all that MLflow has of the trials. Raises what MLflow raises.

    Compared are the runs (one for each trial), their statuses, and each point by metric, step and value. Points of metrics
    that the journal does not tell, e.g. of the proof of the winner, are not.
    """
    reports, histories = _reports_by_trial(events), replay(events)
    found: dict[str, list[Run]] = {}
    for run in runs_where(runs.client, runs.experiment_id, f"tags.`{PARENT_TAG}` = '{runs.parent_id}'"):
        found.setdefault(run.data.tags.get(TRIAL_TAG, ""), []).append(run)
    differences = [
        f"run {run.info.run_id} is of a trial that the journal does not tell"
        for trial_id in found.keys() - histories.keys()
        for run in found[trial_id]
    ]
    compare = partial(_differences_of_trial, runs)
    with ThreadPoolExecutor(READERS) as readers:
        of_trials = readers.map(
            compare,
            histories.values(),
            (found.get(each, []) for each in histories),
            (reports.get(each, []) for each in histories),
        )
        points = 0
        for of_trial, number in of_trials:
            differences += of_trial
            points += number
    return JournalProof(trials=len(histories), points=points, differences=tuple(differences))


def _reports_by_trial(events: Iterable[TrialEvent]) -> dict[str, list[TrialProgressed]]:
    reports: dict[str, list[TrialProgressed]] = {}
    for event in events:
        if isinstance(event, TrialProgressed):
            reports.setdefault(event.trial_id, []).append(event)
    return reports


def _expected_points(reports: Iterable[TrialProgressed]) -> dict[tuple[str, int], float]:
    """Of one trial. Of a step that was trained twice the first point counts, as in MLflow."""
    expected: dict[tuple[str, int], float] = {}
    best = NO_STANDING
    for report in reports:
        best = standing_after(report.progress, best)
        for point in points_of(report, best):
            expected.setdefault((point.key, point.step), point.value)
    return expected


def _differences_of_trial(
    runs: SearchRuns, history: TrialHistory, found: Sequence[Run], reports: Sequence[TrialProgressed]
) -> tuple[list[str], int]:
    """Also returns how many points the journal has of the trial: a search has too many to hold all of them at once."""
    name, expected = f"trial {history.started.number}", _expected_points(reports)
    if len(found) != 1:
        return [f"{name} has {len(found)} runs" if found else f"{name} has no run"], len(expected)
    (run,) = found
    name = f"{name} (run {run.info.run_id})"
    differences = [*_status_difference(name, history, run), *_point_differences(name, runs, run, expected)]
    return differences, len(expected)


def _status_difference(name: str, history: TrialHistory, run: Run) -> Iterator[str]:
    if history.state is TrialState.RUNNING:
        return  # it goes on when the search is resumed
    status = STATUS_OF_END.get(history.state.value, "FINISHED")
    if run.info.status != status:
        yield f"{name} is {run.info.status}, and by the journal {status}"


def _point_differences(name: str, runs: SearchRuns, run: Run, expected: Points) -> Iterator[str]:
    keys = dict.fromkeys(key for key, _ in expected)
    history = {key: runs.client.get_metric_history(run.info.run_id, key) for key in keys}
    times = Counter((key, point.step) for key, points in history.items() for point in points)
    values = {(key, point.step): point.value for key, points in history.items() for point in points}
    for key, step in sorted(expected.keys() | values.keys()):
        place = f"{name} {key} at step {step}"
        if (key, step) not in values:
            yield f"{place} is missing"
        elif (key, step) not in expected:
            yield f"{place} is not in the journal"
        elif times[key, step] > 1:
            yield f"{place} stands there {times[key, step]} times"
        elif values[key, step] != expected[key, step]:
            yield f"{place} is {values[key, step]!r}, and by the journal {expected[key, step]!r}"
