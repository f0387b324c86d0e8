"""MLflow runs of a search, filled from its journal: one run for the search, one child run for each trial, for ever.

Runs are found again by tag, so a search that is resumed (even from another machine) writes on in the same ones. Before
the first metric of a run it is asked what it has: the store keeps every point it is given, twice if it is told twice.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from components.experiment.spec import ExperimentSpec
from components.tracking.store import experiment_id
from components.training.records import Progress, TrialEnded, TrialProgressed, TrialRecord, TrialStarted

SEARCH_TAG, TRIAL_TAG, STATE_TAG = "turnwise.search_id", "turnwise.trial_id", "turnwise.state"
MOST_CHARACTERS = 500
MOST_METRICS_AT_ONCE = 500
LIBRARIES = ("torch", "transformers", "peft", "ray", "mlflow", "bitsandbytes", "optuna")


class SearchRuns:
    """Writes one search's records to MLflow. Any method may raise what MLflow raises; all may be called again."""

    def __init__(self, client: MlflowClient, uri: str, experiment: ExperimentSpec, search_id: str) -> None:
        self.client, self.experiment, self.search_id = client, experiment, search_id
        self.experiment_id = experiment_id(client, experiment.mlflow_experiment, uri)
        self.parent_id = self._parent()
        self._trials: dict[str, str] = {}
        self._known: dict[str, set[tuple[str, int]]] = {}

    def apply(self, record: TrialRecord) -> None:
        """Writes one record; one that is there already changes nothing."""
        if isinstance(record, TrialStarted):
            self._start(record)
        elif isinstance(record, TrialProgressed):
            self._progress(record)
        else:
            self._end(record)

    def trial_run(self, trial_id: str) -> str:
        """The run id of a trial that has started."""
        if trial_id not in self._trials:
            (run,) = self._tagged(TRIAL_TAG, trial_id)
            self._trials[trial_id] = run.info.run_id
        return self._trials[trial_id]

    def log_data(self, name: str, source: str, digests: Mapping[str, str], counts: Mapping[str, int]) -> None:
        """The prepared data, as an MLflow input of the search's run."""
        inputs = [
            DatasetInput(
                dataset=Dataset(
                    name=f"{name}-{split}",
                    digest=digest[:36],
                    source_type="local",
                    source=json.dumps({"uri": source}),
                    profile=json.dumps(dict(counts.items())),
                ),
                tags=[InputTag(key="mlflow.data.context", value=split)],
            )
            for split, digest in digests.items()
        ]
        self.client.log_inputs(self.parent_id, inputs)

    def log_text(self, trial_id: str | None, text: str, file: str) -> None:
        """An artifact of a trial's run, or (None) of the search's."""
        self.client.log_text(self.parent_id if trial_id is None else self.trial_run(trial_id), text, file)

    def log_files(self, folder: Path) -> None:
        self.client.log_artifacts(self.parent_id, str(folder))

    def log_search_metrics(self, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self.client.log_metric(self.parent_id, key, value)

    def end_search(self, state: str) -> None:
        self.client.set_tag(self.parent_id, STATE_TAG, state)
        self.client.set_terminated(self.parent_id, "FINISHED" if state != "interrupted" else "KILLED")

    def _parent(self) -> str:
        known = self._tagged(SEARCH_TAG, self.search_id)
        if known:
            self.client.update_run(known[0].info.run_id, status="RUNNING")
            return str(known[0].info.run_id)
        tags = {SEARCH_TAG: self.search_id, **_environment()}
        run = self.client.create_run(self.experiment_id, tags=tags, run_name=self.search_id)
        tree = self.experiment.model_dump(mode="json", exclude={"tracking"})
        self.client.log_batch(run.info.run_id, params=_params(tree))
        self.client.log_text(run.info.run_id, json.dumps(tree, indent=1), "experiment.json")
        return str(run.info.run_id)

    def _start(self, record: TrialStarted) -> None:
        known = self._tagged(TRIAL_TAG, record.trial_id)
        if known:
            self._trials[record.trial_id] = known[0].info.run_id
            self.client.update_run(known[0].info.run_id, status="RUNNING")
            return
        tags = {
            TRIAL_TAG: record.trial_id,
            "turnwise.search": self.search_id,
            "turnwise.branch": record.branch,
            "mlflow.parentRunId": self.parent_id,
        }
        run = self.client.create_run(
            self.experiment_id,
            start_time=int(record.time * 1000),
            tags=tags,
            run_name=f"{record.number:03d} {record.branch}",
        )
        self._trials[record.trial_id] = run.info.run_id
        params = {**record.spec.model_dump(mode="json"), "branch": record.branch, "workers": record.workers}
        self.client.log_batch(run.info.run_id, params=_params(params))
        self.client.log_text(run.info.run_id, record.spec.model_dump_json(indent=1), "spec.json")

    def _progress(self, record: TrialProgressed) -> None:
        run_id = self.trial_run(record.trial_id)
        known = (
            self._known.setdefault(run_id, self._points(run_id)) if run_id not in self._known else self._known[run_id]
        )
        fresh = [metric for metric in _metrics(record) if (metric.key, metric.step) not in known]
        for start in range(0, len(fresh), MOST_METRICS_AT_ONCE):
            part = fresh[start : start + MOST_METRICS_AT_ONCE]
            self.client.log_batch(run_id, metrics=part)
            known.update((metric.key, metric.step) for metric in part)
        if record.progress.checkpoint is not None:
            self.client.set_tag(run_id, "turnwise.checkpoint", record.progress.checkpoint)

    def _end(self, record: TrialEnded) -> None:
        run_id = self.trial_run(record.trial_id)
        tags = [RunTag(STATE_TAG, record.state), RunTag("turnwise.reason", record.reason[:MOST_CHARACTERS])]
        self.client.log_batch(run_id, tags=tags)
        status = "FAILED" if record.state == "failed" else "FINISHED"
        self.client.set_terminated(run_id, status, end_time=int(record.time * 1000))

    def _points(self, run_id: str) -> set[tuple[str, int]]:
        keys = self.client.get_run(run_id).data.metrics
        return {(key, point.step) for key in keys for point in self.client.get_metric_history(run_id, key)}

    def _tagged(self, tag: str, value: str) -> list[Run]:
        return list(self.client.search_runs([self.experiment_id], f"tags.`{tag}` = '{value}'", max_results=1))


def _metrics(record: TrialProgressed) -> Iterator[Metric]:
    """One point per optimizer step, and one per report. What is not finite is left out: the store would bend it."""
    progress = record.progress
    timestamp = int(record.time * 1000)
    for point in progress.steps:
        at = int(point.time * 1000)
        values = {
            "train/step_loss": point.loss,
            "train/learning_rate": point.learning_rate,
            "train/grad_norm": point.grad_norm,
            "train/target_tokens": point.target_tokens,
        }
        yield from (Metric(key, value, at, point.step) for key, value in values.items() if math.isfinite(value))
    for key, value in _report(progress).items():
        if math.isfinite(value):
            yield Metric(key, value, timestamp, progress.step)


def _report(progress: Progress) -> dict[str, float]:
    return {
        "train/loss": progress.train_loss,
        "eval/loss": progress.eval_loss,
        "eval/num_targets": progress.eval_num_targets,
        "train/tokens_per_second": progress.tokens_per_second,
        "train/seconds": progress.seconds,
        "train/epoch": progress.epoch,
    }


def _params(tree: Mapping[str, Any]) -> list[Param]:
    return [Param(key, value[:MOST_CHARACTERS]) for key, value in _flat(tree, "")]


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, str(value)


def _environment() -> dict[str, str]:
    """Library versions and, inside a git checkout, its commit."""
    tags = {f"version.{name}": version(name) for name in LIBRARIES} | {"version.python": platform.python_version()}
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return tags | {"mlflow.source.git.commit": git.stdout.strip()} if git.returncode == 0 else tags
