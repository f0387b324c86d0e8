"""MLflow runs of a search, filled from its journal: one run for the search, and one child run for each trial.

Runs are found by tag, so a search that is resumed, even from another machine, goes on in the same ones. Before more is
written to a run that was found, its points are read: a step that was trained twice, before and after a failure, has two
times, and MLflow would keep both points. The first point stays.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from components.experiment.branch_models import models_of
from components.experiment.spec import ExperimentSpec, MetricSpec
from components.records.events import (
    NO_STANDING,
    Clone,
    Extension,
    TrialEnded,
    TrialEvent,
    TrialInstructed,
    TrialProgressed,
    TrialStarted,
)
from components.records.search_cost import SearchCost
from components.storage.uri import without_secrets
from components.tracking.library_versions import library_versions
from components.tracking.metric_points import BEST_LOSS, best_key, finite, points_of, standing_after
from components.tracking.mlflow_access import experiment_id

SEARCH_TAG, TRIAL_TAG, PARENT_TAG = "turnwise.search_id", "turnwise.trial_id", "mlflow.parentRunId"
SEARCH_OF_TRIAL_TAG = "turnwise.search"
STATE_TAG, REASON_TAG = "turnwise.state", "turnwise.reason"
SLOT_TAG, NODE_TAG, CHECKPOINT_TAG = "turnwise.slot", "ray.node", "turnwise.checkpoint"
BASE_TAG = "turnwise.base_model"
DEVICE_TAG = "turnwise.device"
MAX_ROWS_TAG = "turnwise.max_rows"  # in a micro-batch, of a trial that ran out of memory with more
SETTINGS_TAG = "turnwise.settings"  # its attention, packing and layout, decided when the search was opened
TRAINED_TAG = "turnwise.trained"  # and the branch: which modules its trials train or adapt
COST_TAG = "turnwise.cost"
NOTE_TAG = "mlflow.note.content"  # what MLflow's page of a run shows as its description
MAX_CHARACTERS = 500
STATUS_OF_END = {  # of a trial or a search; any other end is FINISHED
    "failed": "FAILED",
    "no trial succeeded": "FAILED",
    "lost": "FAILED",
    "not proven": "FAILED",
    "interrupted": "KILLED",
    "terminated": "KILLED",
}


@dataclass(slots=True)
class _TrialRun:
    """What is known of a trial's run.

    `best` is the standing of its best checkpoint: what it is ranked by, and its eval loss (records/events.py). `tags` are
    those of reports that were written here. `points` are what the run holds, by metric and step; None until they have been
    read.
    """

    run_id: str
    tags: dict[str, str]
    best: tuple[float, float] = NO_STANDING
    points: set[tuple[str, int]] | None = None


class SearchRuns:
    """Writes one search's records to MLflow. Any method may raise what MLflow raises.

    After an error it is not known what has arrived: make a new instance, which reads it.
    """

    def __init__(
        self,
        client: MlflowClient,
        uri: str,
        experiment: ExperimentSpec,
        search_id: str,
        facts: Mapping[str, str] | None = None,
        *,
        metric: MetricSpec | None = None,
    ) -> None:
        """`facts` are tags for all runs that are written to: where else the search can be seen.

        `metric`: what trials are ranked by, where it is not that of the file.
        """
        self.metric = metric or experiment.search.metric
        self.client, self.uri, self.experiment, self.search_id = client, uri, experiment, search_id
        self.facts = [RunTag(key, value) for key, value in (facts or {}).items()]
        self.experiment_id = experiment_id(client, experiment.mlflow_experiment, uri)
        self.parent_id = self._open_search_run()
        self._trials: dict[str, _TrialRun] = {}

    def apply(self, record: TrialEvent) -> None:
        """Writes one record. A record that MLflow has already changes nothing."""
        self.apply_together([record])

    def apply_together(self, records: Sequence[TrialEvent]) -> None:
        """Writes one record, or several reports of one trial."""
        if reports := [record for record in records if isinstance(record, TrialProgressed)]:
            self._progress(reports)
        for record in records:
            match record:
                case TrialStarted():
                    self._start(record)
                case TrialInstructed():
                    self._instruct(record)
                case TrialEnded():
                    self._end(record)

    def forget(self, trial_id: str) -> None:
        """What the run of a trial holds is read again before more is written to it."""
        self._trials.pop(trial_id, None)

    @property
    def link(self) -> str:
        """The URL of the search's run in a browser; the tracking URI where no server shows it."""
        if not self.uri.startswith(("http://", "https://")):
            return without_secrets(self.uri)
        return f"{without_secrets(self.uri).rstrip('/')}/#/experiments/{self.experiment_id}/runs/{self.parent_id}"

    def trial_run(self, trial_id: str) -> str:
        """The run id of a trial that has started."""
        return self._trial(trial_id).run_id

    def log_data(self, name: str, source: str, digests: Mapping[str, str], counts: Mapping[str, int]) -> None:
        """Logs the prepared data as MLflow inputs of the search's run, one for each split of `digests`."""
        inputs = []
        for split, digest in digests.items():
            others = tuple(f"{other}_" for other in digests if other != split)
            dataset = Dataset(
                name=f"{name}-{split}",
                digest=digest[:36],  # as long as MLflow's may be
                source_type="local",
                source=json.dumps({"uri": source}),
                profile=json.dumps({key: count for key, count in counts.items() if not key.startswith(others)}),
            )
            inputs.append(DatasetInput(dataset=dataset, tags=[InputTag(key="mlflow.data.context", value=split)]))
        self.client.log_inputs(self.parent_id, inputs)

    def log_text(self, trial_id: str | None, text: str, file: str) -> None:
        """Logs an artifact of a trial's run, or (None) of the search's."""
        self.client.log_text(self.parent_id if trial_id is None else self.trial_run(trial_id), text, file)

    def log_search_metrics(self, metrics: Mapping[str, float]) -> None:
        """Those that the run has already with the same value are not repeated."""
        known = self.client.get_run(self.parent_id).data.metrics
        for key, value in metrics.items():
            if known.get(key) != value:
                self.client.log_metric(self.parent_id, key, value)

    def log_cost(self, cost: SearchCost) -> None:
        """A sentence for people, and the numbers for programs, as tags of the search's run."""
        tags = [RunTag(COST_TAG, cost.sentence), RunTag(f"{COST_TAG}.worker_seconds", f"{cost.worker_seconds:.1f}")]
        if cost.dollars is not None:
            tags.append(RunTag(f"{COST_TAG}.dollars", f"{cost.dollars:.2f}"))
        self.client.log_batch(self.parent_id, tags=tags)

    def log_trial_metrics(self, trial_id: str, metrics: Mapping[str, float], step: int) -> None:
        """Logs numbers that are measured once, after a trial has ended. Those that its run has already stay."""
        if not metrics:
            return
        run_id = self.trial_run(trial_id)
        known = self.client.get_run(run_id).data.metrics
        fresh = {key: value for key, value in metrics.items() if key not in known}
        self.client.log_batch(run_id, metrics=list(finite(fresh, int(time.time() * 1000), step)))

    def end_search(self, state: str) -> None:
        """Ends the search's run, and those of trials that have not ended; these go on in the same runs."""
        status = STATUS_OF_END.get(state, "FINISHED")
        of_search = f"tags.`{PARENT_TAG}` = '{self.parent_id}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], of_search):
            self.client.set_tag(run.info.run_id, STATE_TAG, state)
            self.client.set_terminated(run.info.run_id, "KILLED")
        self.client.set_tag(self.parent_id, STATE_TAG, state)
        self.client.set_terminated(self.parent_id, status)

    def _open_search_run(self) -> str:
        run = self._find(f"tags.`{SEARCH_TAG}` = '{self.search_id}'")
        if run is None:
            tags = {SEARCH_TAG: self.search_id, **_environment()}
            run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.search_id)
        elif run.info.status != "RUNNING":
            self.client.update_run(run.info.run_id, status="RUNNING")
        self.client.log_batch(run.info.run_id, tags=self.facts)
        tree = self.experiment.model_dump(mode="json", exclude={"tracking"})
        self._describe(run, tree, "experiment.json", json.dumps(tree, indent=1))
        return str(run.info.run_id)

    def _start(self, record: TrialStarted) -> None:
        run = self._find_trial(record.trial_id)
        if run is None:
            run = self._create_trial(record)
        elif run.info.end_time is not None and record.time * 1000 > run.info.end_time:
            self.client.update_run(run.info.run_id, status="RUNNING")
            self.client.log_batch(run.info.run_id, tags=[RunTag(STATE_TAG, "running"), RunTag(REASON_TAG, "")])
        self._trials.setdefault(record.trial_id, _trial_run_of(run, self.metric))
        self.client.log_batch(run.info.run_id, tags=self.facts)
        params = {**record.spec.model_dump(mode="json"), "branch": record.branch, "workers": record.workers}
        self._describe(run, params, "spec.json", record.spec.model_dump_json(indent=1))

    def _create_trial(self, record: TrialStarted) -> Run:
        return self.client.create_run(
            self.experiment_id,
            start_time=int(record.time * 1000),
            tags={
                PARENT_TAG: self.parent_id,
                TRIAL_TAG: record.trial_id,
                SEARCH_OF_TRIAL_TAG: self.search_id,
                "turnwise.branch": record.branch,
                BASE_TAG: models_of(self.experiment).get(record.branch, self.experiment.model).path,
                STATE_TAG: "running",
                **self._origin(record),
            },
            run_name=f"{record.number:03d} {record.branch}",
        )

    def _describe(self, run: Run, tree: Mapping[str, Any], file: str, text: str) -> None:
        """Logs params, each cut at MAX_CHARACTERS, and the whole text as an artifact, unless the run has them."""
        missing = [param for param in _params(tree) if param.key not in run.data.params]
        if missing:
            self.client.log_text(run.info.run_id, text, file)
            self.client.log_batch(run.info.run_id, params=missing)  # last: where they are, the artifact is too

    def _progress(self, records: Sequence[TrialProgressed]) -> None:
        trial = self._trial(records[0].trial_id)
        tags: dict[str, str] = {}
        points: dict[tuple[str, int], Metric] = {}
        for record in records:
            tags |= _report_tags(record, trial.best)
            trial.best = standing_after(record.progress, trial.best)
            for point in points_of(record, trial.best):
                points.setdefault((point.key, point.step), point)
        if trial.points is None:
            trial.points = self._read_points(trial.run_id)
        fresh = {place: point for place, point in points.items() if place not in trial.points}
        # Tags first: the best value is among the metrics, and once that is there the tag is not written again.
        if changed := [RunTag(key, value) for key, value in tags.items() if trial.tags.get(key) != value]:
            self.client.log_batch(trial.run_id, tags=changed)
        trial.tags |= tags
        if fresh:
            self.client.log_batch(trial.run_id, metrics=list(fresh.values()))
        trial.points.update(fresh)

    def _end(self, record: TrialEnded) -> None:
        run_id = self.trial_run(record.trial_id)
        tags = [RunTag(STATE_TAG, record.state), RunTag(REASON_TAG, record.reason[:MAX_CHARACTERS])]
        self.client.log_batch(run_id, tags=tags)
        status = STATUS_OF_END.get(record.state, "FINISHED")
        self.client.set_terminated(run_id, status, end_time=int(record.time * 1000))

    def _origin(self, record: TrialStarted) -> dict[str, str]:
        """Returns the tags of a trial that was cloned from another."""
        if record.parent is None:
            return {}
        tags = {"turnwise.parent": record.parent, "turnwise.parent_run_id": self.trial_run(record.parent)}
        return tags | {"turnwise.warm_from": record.warm_from} if record.warm_from else tags

    def _instruct(self, record: TrialInstructed) -> None:
        """Writes a tag for programs, and a line in the run's description for people, each once."""
        run_id = self.trial_run(record.trial_id)
        tags = [_instruction_tag(record)]
        line = f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime(record.time))} UTC: {record.sentence}"
        note = self.client.get_run(run_id).data.tags.get(NOTE_TAG, "")
        if line not in note.splitlines():
            tags.append(
                RunTag(NOTE_TAG, f"{note}\n\n{line}".strip())
            )  # Markdown joins lines without an empty one between
        self.client.log_batch(run_id, tags=tags)

    def _trial(self, trial_id: str) -> _TrialRun:
        if trial_id not in self._trials:
            run = self._find_trial(trial_id)
            if run is None:
                raise MlflowException(
                    f"trial {trial_id} of search {self.search_id} has no MLflow run", error_code=RESOURCE_DOES_NOT_EXIST
                )
            self._trials[trial_id] = _trial_run_of(run, self.metric)
        return self._trials[trial_id]

    def _read_points(self, run_id: str) -> set[tuple[str, int]]:
        keys = self.client.get_run(run_id).data.metrics
        return {(key, point.step) for key in keys for point in self.client.get_metric_history(run_id, key)}

    def _find_trial(self, trial_id: str) -> Run | None:
        return self._find(f"tags.`{PARENT_TAG}` = '{self.parent_id}' and tags.`{TRIAL_TAG}` = '{trial_id}'")

    def _find(self, condition: str) -> Run | None:
        return next(iter(self.client.search_runs([self.experiment_id], condition, max_results=1)), None)


def _report_tags(record: TrialProgressed, best: tuple[float, float]) -> dict[str, str]:
    """`best`: the standing of the trial's best checkpoint before the report."""
    progress = record.progress
    found = {
        SLOT_TAG: record.slot,
        NODE_TAG: record.node,
        DEVICE_TAG: record.device,
        MAX_ROWS_TAG: None if progress.max_rows is None else str(progress.max_rows),
        CHECKPOINT_TAG: progress.checkpoint if progress.standing < best else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _instruction_tag(record: TrialInstructed) -> RunTag:
    match record.instruction:
        case Extension(target_tokens=tokens):
            return RunTag("turnwise.extended_to", str(tokens))
        case Clone(number=number, trial_id=clone):
            return RunTag(f"turnwise.clone.{number}", clone)
        case _:
            return RunTag("turnwise.stopped_by", record.by)


def _trial_run_of(run: Run, metric: MetricSpec) -> _TrialRun:
    found = run.data.metrics
    if BEST_LOSS not in found or (best := found.get(best_key(metric))) is None:
        return _TrialRun(run.info.run_id, {})
    return _TrialRun(run.info.run_id, {}, best=(metric.to_minimize(best), found[BEST_LOSS]))


def _params(tree: Mapping[str, Any]) -> list[Param]:
    return [Param(key, value[:MAX_CHARACTERS]) for key, value in _flatten(tree, "")]


def _flatten(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flatten(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)


def _environment() -> dict[str, str]:
    """Returns tags: library versions and, inside a git checkout, its commit."""
    tags = {f"version.{name}": version for name, version in library_versions().items()}
    commit = git_commit()
    return tags | {"mlflow.source.git.commit": commit} if commit else tags


def git_commit() -> str | None:
    """Returns the commit of this code, if it is in a git checkout and git is installed."""
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return git.stdout.strip() if git.returncode == 0 else None
