"""Verifies a registered version in processes of its own: it loads, answers, and scores what it scored in training.

The version is downloaded from the registry, and each process runs the code that the version brings (verification).
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from components.data.prepare import PreparedDataset
from components.errors import VerificationError
from components.models.load_trained import ADAPTER
from components.registry import fresh_process
from components.registry.model_package import package_in
from components.registry.own_code import CODE, package_name
from components.registry.verification_messages import (
    ABOUT_BASE,
    ABOUT_INCUMBENT,
    OUT_OF_MEMORY,
    PhaseResult,
    VerificationReport,
    VerificationRequest,
    VerificationSettings,
)
from components.storage.uri import without_secrets
from components.tracking.mlflow_access import MLFLOW_ERRORS, download_version, is_final, reason_of


class _PhaseError(Exception):
    """Why a phase gave no result. The model that it was about is the subject of the sentence."""


def verify_in_subprocess(
    version_uri: str,
    incumbent_uri: str | None,
    uri: str,
    *,
    settings: VerificationSettings,
    earlier: VerificationReport | None = None,
) -> VerificationReport:
    """Verifies a version in new Python processes.

    Raises VerificationError with the last line that a failed process wrote, and what MLflow raises. An incumbent that cannot
    be scored, for whatever reason, is no failure: `incumbent_problem` says why.

    Args:
        version_uri, incumbent_uri: models:/NAME/VERSION.
        uri: of the registry.
        earlier: the report on this version beside another incumbent; only the incumbent is scored then.
    """
    with tempfile.TemporaryDirectory(prefix="turnwise-verification-") as name:
        folder = Path(name)
        try:
            model = _download(version_uri, uri, folder / "candidate", part="" if earlier is None else CODE)
        except _PhaseError as error:
            raise VerificationError(f"{version_uri} {error}") from None
        prepared = PreparedDataset.open(settings.prepared)
        request = VerificationRequest(
            model=model,
            incumbent=None,
            judged_store=prepared.judged.path,
            eval_store=None if prepared.verdict is None else prepared.eval.path,
            max_tokens=settings.max_tokens,
            context=prepared.context,
            rows_per_batch=settings.rows_per_batch,
            probes=settings.probes,
            general=settings.general,
            generation=settings.generation,
            more_questions=settings.more_questions,
            judged=settings.judged,
        )
        try:
            report = earlier or verify_candidate(
                request, version_uri, settings.timeout_seconds, more=incumbent_uri is not None
            )
            about: dict[str, Any] = dict.fromkeys(ABOUT_INCUMBENT)
            if incumbent_uri is not None:
                asked = {"digest": report.digest, "scores_thoughts": report.scores_thoughts}
                request = request.model_copy(update={"phase": "incumbent", **asked})
                about |= verify_incumbent(request, incumbent_uri, uri, folder / "incumbent", settings.timeout_seconds)
        finally:
            fresh_process.drop_ahead()
        return report.model_copy(update=about)


def verify_candidate(
    request: VerificationRequest, version_uri: str, timeout_seconds: float, *, more: bool = False
) -> VerificationReport:
    """Runs the phases of the candidate and, unless that one was scored with it, of its base. `more`: one will follow."""
    # An adapter can be switched off, so that mostly no phase of the base is needed.
    has_adapter = (package_in(request.model) / ADAPTER).is_dir()
    try:
        found = run_phase(request, timeout_seconds, more=more or not has_adapter)
    except _PhaseError as error:
        raise VerificationError(f"{version_uri} {error}") from None
    if found.base_sums is None:
        try:
            base = run_phase(request.model_copy(update={"phase": "base"}), timeout_seconds, more=more)
        except _PhaseError as error:
            raise VerificationError(f"the base model of {version_uri}, which it is compared with, {error}") from None
        found = found.model_copy(update={name: getattr(base, name) for name in ABOUT_BASE})
    return VerificationReport.model_validate(found.model_dump())


def verify_incumbent(
    request: VerificationRequest, incumbent_uri: str, uri: str, target: Path, timeout_seconds: float
) -> dict[str, Any]:
    """The fields of VerificationReport about the incumbent, which is downloaded to `target`."""
    try:
        incumbent = _download(incumbent_uri, uri, target)
        found = run_phase(request.model_copy(update={"incumbent": incumbent}), timeout_seconds)
    except _PhaseError as error:
        return {"incumbent_problem": str(error)}
    return {name: getattr(found, name) for name in ABOUT_INCUMBENT}


def _download(version_uri: str, uri: str, target: Path, part: str = "") -> Path:
    """The folder of a version. `part`: only this folder of it. Raises _PhaseError if a retry would not help."""
    try:
        folder = download_version(version_uri, uri, target, part)
    except MLFLOW_ERRORS as error:
        if isinstance(error, MlflowException) and not is_final(error):
            raise
        raise _PhaseError(f"cannot be downloaded: {reason_of(error)}") from None
    if not (folder / CODE).is_dir():
        raise _PhaseError("cannot be downloaded whole: its files are gone")
    return folder


def run_phase(request: VerificationRequest, timeout_seconds: float, *, more: bool = False) -> PhaseResult:
    """Runs one phase in a new process, on the code of the candidate's version.

    `more`: another one will follow, so its process imports libraries meanwhile.
    """
    code, package = request.model / CODE, package_name(request.model)
    with tempfile.TemporaryDirectory(prefix="turnwise-phase-") as name:
        request_file, result_file = Path(name) / "request.json", Path(name) / "result.json"
        request_file.write_text(request.model_dump_json(), encoding="utf-8")
        module, files = f"{package}.registry.verification_worker", [str(request_file), str(result_file)]
        process = fresh_process.take()
        if more:
            fresh_process.begin_ahead()
        try:
            status, stderr = process.run(code, module, files, timeout_seconds)
        except subprocess.TimeoutExpired:
            raise _PhaseError(
                f"was not proven within {timeout_seconds:.0f} seconds; raise registry.proof_minutes"
            ) from None
        if status != 0:
            raise _PhaseError(explain_exit(status, stderr))
        result = PhaseResult.model_validate_json(result_file.read_text(encoding="utf-8"))
    if not result.code.samefile(code / package):
        raise _PhaseError(f"was not proven: the code in {result.code} ran instead of its own")
    return result


def explain_exit(returncode: int, stderr: str) -> str:
    """Why a process failed, from its exit status and its last line."""
    last = without_secrets((stderr.strip().splitlines() or ["no word"])[-1])
    if returncode in (OUT_OF_MEMORY, -signal.SIGKILL):
        cause = "it was killed, as the kernel does when memory runs out" if returncode < 0 else last
        return (
            f"does not fit into the memory of the machine that proves it ({cause}); prove it on a larger one, or choose"
            " fewer batch.rows_per_micro_batch or a smaller data.max_tokens"
        )
    return f"does not load and talk in a fresh process: {last}"
