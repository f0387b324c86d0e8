"""The gate before the registry's alias: packaged, proven in a fresh process, better than base and incumbent, in order."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

import components
from components.batches.prepare import PreparedDataset
from components.experiment.spec import ExperimentSpec
from components.models.trained import package
from components.tracking.gate import Verdict, judge
from components.tracking.packaged_model import PACKAGE
from components.tracking.proof import Probe, ProofAnswer, ProofRequest, prove
from components.tracking.runs import SearchRuns
from components.training.records import TrialHistory

MODEL_FOLDER = "model"
CHALLENGER = "challenger"
SERVED_BY = ("mlflow", "torch", "transformers", "peft", "safetensors", "pydantic", "pyarrow", "numpy", "jinja2")
MOST_DEVIATION = 0.01


class ProofError(RuntimeError):
    """A candidate that does not load, does not talk, or does not score what it scored in training."""


class RegistryResult(BaseModel):
    """What became of a candidate. `promoted`: it holds the alias now."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    alias: str
    promoted: bool
    reason: str
    verdicts: tuple[Verdict, ...]
    probes: tuple[Probe, ...]
    base_answers: tuple[str, ...]
    candidate_answers: tuple[str, ...]
    base_loss: float
    candidate_loss: float


def register_best(
    runs: SearchRuns,
    uri: str,
    experiment: ExperimentSpec,
    best: TrialHistory,
    dataset: PreparedDataset,
    probes: Sequence[Probe],
) -> RegistryResult:
    """Makes the best trial's best checkpoint a version, proves it, and gives it the alias if it passes the gate.

    The version stays, without the alias, if it does not. Raises ProofError if it cannot be proven.
    """
    client, name = runs.client, experiment.registered_model
    assert best.best is not None
    incumbent = _alias(client, name, experiment.registry.alias)
    number = _new_version(client, runs, name, best, dataset)
    proof = _proven(uri, name, number, incumbent, best, dataset, experiment, probes)
    client.set_registered_model_alias(name, CHALLENGER, number)
    verdicts = _verdicts(proof, experiment.registry.confidence)
    promoted, reason = _decision(incumbent, proof, verdicts)
    if promoted:
        client.set_registered_model_alias(name, experiment.registry.alias, number)
        client.delete_registered_model_alias(name, CHALLENGER)
    for verdict in verdicts:
        client.set_model_version_tag(name, number, f"turnwise.against_{verdict.other}", verdict.sentence())
    client.set_model_version_tag(name, number, "turnwise.gate", reason)
    return RegistryResult(
        name=name,
        version=number,
        alias=experiment.registry.alias,
        promoted=promoted,
        reason=reason,
        verdicts=verdicts,
        probes=tuple(probes),
        base_answers=proof.base_answers,
        candidate_answers=proof.candidate_answers,
        base_loss=verdicts[0].other_loss,
        candidate_loss=verdicts[0].candidate_loss,
    )


def download(model_uri: str, uri: str) -> Path:
    """The package folder of a version, e.g. models:/NAME@champion. Raises ValueError if there is none."""
    try:
        folder = mlflow.artifacts.download_artifacts(model_uri, tracking_uri=uri, registry_uri=uri)
    except MlflowException as error:
        raise ValueError(f"{model_uri}: not in the registry at {uri}: {str(error).splitlines()[0]}") from None
    return Path(folder) / "artifacts" / PACKAGE


def _new_version(
    client: MlflowClient, runs: SearchRuns, name: str, best: TrialHistory, dataset: PreparedDataset
) -> str:
    """Packages and registers; nothing points at it yet."""
    assert best.best is not None
    assert best.best.checkpoint is not None
    run_id = runs.trial_run(best.trial_id)
    with tempfile.TemporaryDirectory(prefix="turnwise-package-") as scratch:
        package(Path(best.best.checkpoint), Path(scratch) / PACKAGE)
        save_packaged(Path(scratch) / PACKAGE, Path(scratch) / MODEL_FOLDER)
        client.log_artifacts(run_id, str(Path(scratch) / MODEL_FOLDER), MODEL_FOLDER)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"{client.get_run(run_id).info.artifact_uri}/{MODEL_FOLDER}"
    lineage = {
        "turnwise.search_id": runs.search_id,
        "turnwise.trial_id": best.trial_id,
        "turnwise.branch": best.started.branch,
        "turnwise.data_digest": dataset.digest,
        "turnwise.eval_loss": f"{best.best.eval_loss:.6f}",
    }
    return str(client.create_model_version(name, source, run_id, tags=lineage).version)


def save_packaged(package_folder: Path, target: Path) -> None:
    """An MLflow model of plain files: the package, this code, a signature and an example. It is tried while it is saved."""
    code = Path(components.__path__[0])
    mlflow.pyfunc.save_model(
        str(target),
        python_model=str(code / "tracking" / "packaged_model.py"),
        artifacts={PACKAGE: str(package_folder)},
        code_paths=[str(code)],
        input_example={"messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 16, "temperature": 0.0},
        pip_requirements=[f"{package}=={version(package).partition('+')[0]}" for package in SERVED_BY],
    )


def _proven(
    uri: str,
    name: str,
    number: str,
    incumbent: str | None,
    best: TrialHistory,
    dataset: PreparedDataset,
    experiment: ExperimentSpec,
    probes: Sequence[Probe],
) -> ProofAnswer:
    request = ProofRequest(
        tracking_uri=uri,
        version_uri=f"models:/{name}/{number}",
        incumbent_uri=None if incumbent is None else f"models:/{name}/{incumbent}",
        eval_store=dataset.directory / "eval.arrow",
        max_tokens=experiment.data.max_tokens,
        probes=tuple(probes),
    )
    try:
        proof = prove(request)
    except RuntimeError as error:
        raise ProofError(str(error)) from None
    assert best.best is not None
    trained, loaded = best.best.eval_loss, sum(proof.candidate_sums) / sum(proof.num_targets)
    if abs(loaded - trained) > MOST_DEVIATION * trained:
        raise ProofError(
            f"models:/{name}/{number} scores {loaded:.4f} nats per target after loading, and scored {trained:.4f} in training"
        )
    if not proof.reply.strip():
        raise ProofError(f"models:/{name}/{number} loads, but answers nothing")
    return proof


def _verdicts(proof: ProofAnswer, confidence: float) -> tuple[Verdict, ...]:
    others = {"base": proof.base_sums, "incumbent": proof.incumbent_sums}
    return tuple(
        judge(other, proof.candidate_sums, sums, proof.num_targets, confidence=confidence)
        for other, sums in others.items()
        if sums is not None
    )


def _decision(incumbent: str | None, proof: ProofAnswer, verdicts: Sequence[Verdict]) -> tuple[bool, str]:
    if incumbent is not None and proof.incumbent_sums is None:
        return False, (
            f"version {incumbent} holds the alias and has another tokenizer or chat format, so losses per target cannot be"
            " compared; move the alias by hand, or choose another registry.name"
        )
    for verdict in verdicts:
        if not verdict.beats:
            return False, verdict.sentence()
    return True, "; ".join(verdict.sentence() for verdict in verdicts)


def _alias(client: MlflowClient, name: str, alias: str) -> str | None:
    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException:
        return None  # no such model yet, or nobody holds the alias
