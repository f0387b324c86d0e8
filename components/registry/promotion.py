"""The gate before the registry's alias: packaged, proven in a fresh process, better than base and incumbent, in order."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.data.prepare import PreparedDataset
from components.data.trained_on import keys_digest, training_keys, write_trained_on
from components.experiment.spec import CHALLENGER, ExperimentSpec
from components.inference.comparison import Verdict, paired_bootstrap
from components.models.base.reference import BaseReference
from components.models.load_trained import package
from components.records.events import Progress, TrialHistory
from components.registry.chat_model import PACKAGE
from components.registry.model_package import save_packaged
from components.registry.probes import Probe
from components.registry.result import RegistryResult
from components.registry.verification import ABOUT_INCUMBENT, VerificationReport, prove
from components.storage.open import folder_at
from components.tracking.mlflow_client import MLFLOW_ERRORS, check_model_name, download_version, is_final, reason_of
from components.tracking.mlflow_runs import SearchRuns, git_commit

MODEL_FOLDER = "model"
GATE_TAG = "turnwise.gate"  # the decision in a sentence
PASSED_TAG = "turnwise.gate_passed"  # the decision for programs: an alias that was moved by hand says nothing
REPLACES_TAG, AGAINST_TAG = "turnwise.replaces", "turnwise.against_{}"
MAX_ROUNDS = 3
MAX_DEVIATION = 0.01
NOTHING_SAYS = (
    "nothing says what the incumbent was trained on, so it was compared on all held-out conversations, some of which it may"
    " know"
)


# Does the work on a machine that is fit for it, and gives back what comes of it.
Place = Callable[[Callable[[], VerificationReport]], VerificationReport]


def here(work: Callable[[], VerificationReport]) -> VerificationReport:
    return work()


class VerificationError(RuntimeError):
    """A candidate that does not load, does not talk, or does not score what it scored in training."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
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
        """On this machine."""
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
        """Tags that say where it comes from."""
        base = BaseReference.read(self.checkpoint)
        keys = training_keys(self.dataset.train)
        commit = git_commit()
        return {
            **self.identity,
            "turnwise.experiment": self.experiment.name,
            "turnwise.branch": self.trial.started.branch,
            "turnwise.method": self.trial.started.spec.method.kind,
            "turnwise.data_digest": self.dataset.digest,
            "turnwise.metric": "eval/loss",
            "turnwise.eval_loss": f"{self.report.eval_loss:.6f}",
            "turnwise.base_model": base.model.path,
            "turnwise.base_digest": base.digest,
            "turnwise.chat_format": base.chat_format,
            **({"turnwise.trained_on": keys_digest(keys)} if keys is not None else {}),
            **({"mlflow.source.git.commit": commit} if commit else {}),
        }


def register_best(
    runs: SearchRuns,
    uri: str,
    experiment: ExperimentSpec,
    best: TrialHistory,
    dataset: PreparedDataset,
    probes: Sequence[Probe],
    place: Place = here,
) -> RegistryResult:
    """Makes the best trial's best checkpoint a version, proves it, and gives it the alias if it passes the gate.

    The version stays, without the alias, if it does not. Called again, after whatever interruption, it goes on with the
    version that is there. Raises VerificationError if it cannot be proven.

    Args:
        place: where it is proven; the machine must reach the registry, the data and the base model.
    """
    assert best.best is not None
    candidate = Candidate(runs=runs, uri=uri, experiment=experiment, trial=best, report=best.best, dataset=dataset)
    number = _registered(candidate) or _register(candidate)
    with _still_there(candidate, number):
        proof, verdicts, promoted, reason = _gated(candidate, number, probes, place)
    return RegistryResult(
        name=candidate.name,
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


def _gated(
    candidate: Candidate, number: str, probes: Sequence[Probe], place: Place
) -> tuple[VerificationReport, tuple[Verdict, ...], bool, str]:
    """Proof, verdicts, whether the alias is the candidate's, and why.

    A proof takes minutes, in which others may move the alias: whoever holds it at the end is the one to beat.
    """
    alias, confidence = candidate.experiment.registry.alias, candidate.experiment.registry.confidence
    proof, holder = None, _holder(candidate, alias)
    for _ in range(MAX_ROUNDS):
        incumbent = None if holder == number else holder
        proof = _proven(candidate, number, incumbent, probes, place, earlier=proof)
        verdicts = _verdicts(proof, confidence)
        if holder == number and (told := _passed_before(candidate, number)):
            return proof, verdicts, True, told
        promoted, reason = _decision(incumbent, proof, verdicts)
        if holder == number and not promoted:
            reason = f"{reason}; it holds the alias {alias} because somebody gave it that, not this gate"
        holder, before = _decide(candidate, number, holder, promoted, reason, verdicts), holder
        if holder == before:
            return proof, verdicts, promoted, reason
    assert proof is not None
    reason = f"the alias {alias} went from version to version while this one was compared, {MAX_ROUNDS} times"
    _record(candidate, number, False, reason)
    candidate.client.set_registered_model_alias(candidate.name, CHALLENGER, number)
    return proof, verdicts, False, reason


def download(model_uri: str, uri: str) -> Path:
    """The package folder of a version, e.g. models:/NAME@champion. Raises ValueError if there is none."""
    try:
        return download_version(model_uri, uri) / "artifacts" / PACKAGE
    except MLFLOW_ERRORS as error:
        raise ValueError(f"{model_uri}: not to be had from the registry: {reason_of(error)}") from None


def _registered(candidate: Candidate) -> str | None:
    """The version of this candidate, if an earlier attempt came so far."""
    for known in candidate.client.search_model_versions(f"name = '{candidate.name}'"):
        if candidate.identity.items() <= known.tags.items():
            return str(known.version)
    return None


def _register(candidate: Candidate) -> str:
    """Packages, uploads, and registers what has arrived; nothing points at it yet."""
    client, run_id = candidate.client, candidate.runs.trial_run(candidate.trial.trial_id)
    # A version's files are those of its step for ever, whatever else the trial's run gets.
    files = f"{MODEL_FOLDER}/step_{candidate.report.step:06d}"
    with tempfile.TemporaryDirectory(prefix="turnwise-package-") as scratch:
        try:
            package(candidate.checkpoint, Path(scratch) / PACKAGE)
            write_trained_on(candidate.dataset.train, Path(scratch) / PACKAGE)
            save_packaged(Path(scratch) / PACKAGE, Path(scratch) / MODEL_FOLDER)
        except ValueError as error:
            raise VerificationError(f"{candidate.checkpoint} cannot be packaged: {error}") from None
        client.log_artifacts(run_id, str(Path(scratch) / MODEL_FOLDER), files)
    _make_model(candidate)
    source = f"{client.get_run(run_id).info.artifact_uri}/{files}"
    return str(client.create_model_version(candidate.name, source, run_id, tags=candidate.lineage).version)


def _make_model(candidate: Candidate) -> None:
    """The registered model, which another search may have made, now or before."""
    try:
        candidate.client.create_registered_model(candidate.name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
        try:
            check_model_name(candidate.uri, candidate.name)
        except ValueError as taken:
            raise VerificationError(str(taken)) from None


def _holder(candidate: Candidate, alias: str) -> str | None:
    """The version that holds an alias. Raises if MLflow cannot say: not to know is not to have none."""
    try:
        return str(candidate.client.get_model_version_by_alias(candidate.name, alias).version)
    except MlflowException as error:
        if not is_final(error):
            raise
        return None


@contextlib.contextmanager
def _still_there(candidate: Candidate, number: str) -> Iterator[None]:
    """Inside, MLflow's refusal is a VerificationError if the reason is that somebody has deleted the version meanwhile."""
    try:
        yield
    except MlflowException as error:
        if not is_final(error) or _registered(candidate) == number:
            raise
        raise VerificationError(f"{candidate.name} version {number} was deleted while it was proven") from None


def _proven(
    candidate: Candidate,
    number: str,
    incumbent: str | None,
    probes: Sequence[Probe],
    place: Place,
    earlier: VerificationReport | None,
) -> VerificationReport:
    """`earlier`: against another incumbent."""
    if earlier is not None and incumbent is None:
        return earlier.model_copy(update=dict.fromkeys(ABOUT_INCUMBENT))
    try:
        proof = place(
            partial(
                prove,
                f"models:/{candidate.name}/{number}",
                f"models:/{candidate.name}/{incumbent}" if incumbent else None,
                candidate.uri,
                prepared=candidate.dataset.directory,
                max_tokens=candidate.experiment.data.max_tokens,
                rows_per_batch=candidate.trial.started.spec.batch.rows_per_micro_batch,
                probes=tuple(probes),
                timeout_seconds=60 * candidate.experiment.registry.proof_minutes,
                earlier=earlier,
            )
        )
        _check(proof, candidate.report.eval_loss, f"models:/{candidate.name}/{number}")
    except (RuntimeError, ValueError) as error:  # the latter of prepared data that has come to harm
        _record(candidate, number, False, f"not proven: {error}")
        raise VerificationError(str(error)) from None
    return proof


def _check(proof: VerificationReport, trained: float, version_uri: str) -> None:
    loaded = sum(proof.candidate_sums) / sum(proof.num_targets)
    if not abs(loaded - trained) <= MAX_DEVIATION * trained:
        raise VerificationError(
            f"{version_uri} scores {loaded:.4f} nats per target after loading, and scored {trained:.4f} in training"
        )
    if not proof.reply.strip():
        raise VerificationError(f"{version_uri} loads, but answers nothing")


def _verdicts(proof: VerificationReport, confidence: float) -> tuple[Verdict, ...]:
    """Against the base on all held-out conversations, against the incumbent on those that it was not trained on either."""
    everything = tuple(range(len(proof.num_targets)))
    base = _compared("base", proof, proof.base_sums, everything, confidence)
    if proof.incumbent_sums is None:
        return (base,)
    if proof.incumbent_unseen is None:
        return base, _compared("incumbent", proof, proof.incumbent_sums, everything, confidence, NOTHING_SAYS)
    seen = len(everything) - len(proof.incumbent_unseen)
    note = f"the incumbent was trained on {seen} more of the held-out ones, which do not count" if seen else ""
    return base, _compared("incumbent", proof, proof.incumbent_sums, proof.incumbent_unseen, confidence, note)


def _compared(
    other: str,
    proof: VerificationReport,
    sums: Sequence[float],
    chosen: Sequence[int],
    confidence: float,
    note: str = "",
) -> Verdict:
    if not chosen:
        found = paired_bootstrap(other, proof.candidate_sums, sums, proof.num_targets, confidence=confidence, note=note)
        return found.model_copy(update={"beats": False, "conversations": 0, "effective": 0.0})
    return paired_bootstrap(
        other,
        [proof.candidate_sums[index] for index in chosen],
        [sums[index] for index in chosen],
        [proof.num_targets[index] for index in chosen],
        confidence=confidence,
        note=note,
    )


def _decision(incumbent: str | None, proof: VerificationReport, verdicts: Sequence[Verdict]) -> tuple[bool, str]:
    if proof.incumbent_problem is not None:
        return False, (
            f"version {incumbent} holds the alias and {proof.incumbent_problem}; move the alias by hand, or choose another"
            " registry.name"
        )
    for verdict in verdicts:
        if not verdict.beats:
            return False, verdict.sentence()
    return True, "; ".join(verdict.sentence() for verdict in verdicts)


def _decide(
    candidate: Candidate,
    number: str,
    holder: str | None,
    promoted: bool,
    reason: str,
    verdicts: Sequence[Verdict],
) -> str | None:
    """Tags first and the alias last: whoever finds the alias finds why. Returns the version that held it at that moment.

    Nothing is moved where that is another than `holder`, which was compared. MLflow cannot swap an alias on a condition:
    who moves it between the last two requests, some milliseconds, is not seen.
    """
    client, name, alias = candidate.client, candidate.name, candidate.experiment.registry.alias
    for verdict in verdicts:
        client.set_model_version_tag(name, number, AGAINST_TAG.format(verdict.other), verdict.sentence())
    if promoted and holder not in (None, number):
        client.set_model_version_tag(name, number, REPLACES_TAG, holder)
    _record(candidate, number, promoted, reason)
    if promoted and _holder(candidate, CHALLENGER) == number:
        client.delete_registered_model_alias(name, CHALLENGER)
    found = _holder(candidate, alias)
    if found != holder:
        _retract(candidate, number)
    elif promoted:
        client.set_registered_model_alias(name, alias, number)
    elif holder != number:
        client.set_registered_model_alias(name, CHALLENGER, number)
    return found


def _retract(candidate: Candidate, number: str) -> None:
    """Takes back what was decided against a version that does not hold the alias any more."""
    _record(candidate, number, False, "not decided: the alias moved while this version was compared")
    for key in (REPLACES_TAG, AGAINST_TAG.format("incumbent")):
        candidate.client.delete_model_version_tag(candidate.name, number, key)


def _record(candidate: Candidate, number: str, passed: bool, reason: str) -> None:
    """For people and for programs, on the version."""
    tags = {GATE_TAG: reason, PASSED_TAG: str(passed).lower()}
    for key, value in tags.items():
        candidate.client.set_model_version_tag(candidate.name, number, key, value)


def _passed_before(candidate: Candidate, number: str) -> str | None:
    """Why this gate let the version through, if an earlier attempt came to that end."""
    tags = candidate.client.get_model_version(candidate.name, number).tags
    return tags[GATE_TAG] if tags.get(PASSED_TAG) == "true" else None
