"""The best report of a search's best trial, on its way into the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlflow import MlflowClient

from components.conversations.format_facts import format_facts
from components.conversations.load_format import load_format_of
from components.data.prepare import PreparedDataset
from components.data.trained_on import keys_digest, training_keys
from components.experiment.spec import EVAL_LOSS, ExperimentSpec
from components.models.base.load_base import resolve_model
from components.models.base.reference import BaseReference
from components.records.events import Progress, TrialHistory
from components.storage.open_folder import folder_at
from components.tracking.mlflow_runs import SearchRuns, git_commit


@dataclass(frozen=True, kw_only=True)
class RegistryCandidate:
    """The best report of a search's best trial, on its way into the registry at `uri`."""

    runs: SearchRuns
    uri: str
    experiment: ExperimentSpec
    trial: TrialHistory
    report: Progress
    dataset: PreparedDataset

    @property
    def client(self) -> MlflowClient:
        return self.runs.client

    @property
    def name(self) -> str:
        return self.experiment.registered_model

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's folder, on this machine."""
        assert self.report.checkpoint is not None
        return folder_at(self.report.checkpoint).download()

    @property
    def identity(self) -> dict[str, str]:
        """Tags that no other candidate has."""
        return {
            "turnwise.search_id": self.runs.search_id,
            "turnwise.trial_id": self.trial.trial_id,
            "turnwise.step": str(self.report.step),
        }

    @property
    def lineage(self) -> dict[str, str]:
        """Tags that say what the version was made from."""
        base = BaseReference.read(self.checkpoint)
        keys = training_keys(self.dataset.train)
        commit, metric, scores = git_commit(), self.report.metric, self.report.scores
        return {
            **self.identity,
            "turnwise.experiment": self.experiment.name,
            "turnwise.branch": self.trial.started.branch,
            "turnwise.method": self.trial.started.spec.method.kind,
            "turnwise.data_digest": self.dataset.digest,
            "turnwise.metric": "eval/loss" if metric.name == EVAL_LOSS else metric.name,
            **({"turnwise.score": f"{scores[metric.name]:.6f}"} if metric.name in scores else {}),
            "turnwise.eval_loss": f"{self.report.eval_loss:.6f}",
            "turnwise.base_model": base.model.path,
            "turnwise.base_digest": base.digest,
            **format_facts(
                base.chat_format, load_format_of(resolve_model(base.model, weights=False), base.chat_format)
            ),
            **({"turnwise.trained_on": keys_digest(keys)} if keys is not None else {}),
            **({"mlflow.source.git.commit": commit} if commit else {}),
        }
