"""Proof, in a fresh process, that a registered version loads, talks and scores as it was trained to.

    python -m components.registry.verification REQUEST.json ANSWER.json

The version is downloaded from the registry, and the process runs in its folder, on the code that lies in it: what works
here works for whoever loads the version. Candidate, base model and incumbent are scored one after another, each in a process
of its own, so that memory holds one model at a time, and a model that does not fit ends no process but its own.
"""

from __future__ import annotations

import errno
import math
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal

import mlflow.pyfunc
import torch
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

from components.conversations.chat_formats.base import ChatFormat
from components.data.comparable_conversations import find_render_differences, unseen_conversations
from components.data.prepare import PreparedDataset
from components.data.token_store import TokenStore
from components.data.trained_on import read_trained_on
from components.inference.generate import generate_reply
from components.models.load_trained import LoadedModel, load_base_of, load_trained
from components.registry.own_code import CODE, INSTALLED, package_name
from components.registry.probes import Probe
from components.storage.base import Folder
from components.tracking.mlflow_client import MLFLOW_ERRORS, download_version, is_final, reason_of, without_secrets
from components.training.evaluate import score

GREETING = Probe(messages=({"role": "user", "content": "Hello, who are you?"},))
OUT_OF_MEMORY = 12  # exit status of a process whose allocator says so; the kernel says it by SIGKILL
ABOUT_INCUMBENT = ("incumbent_sums", "incumbent_problem", "incumbent_unseen")  # fields of VerificationReport
Phase = Literal["candidate", "base", "incumbent"]


class VerificationRequest(BaseModel):
    """What one process is asked. `model` and `incumbent` are folders of downloaded versions.

    `digest` is that of the candidate's chat format, which the incumbent's is compared with. `rows_per_batch` is the trial's,
    so that sums are alike.
    """

    model_config = ConfigDict(frozen=True)

    phase: Phase = "candidate"
    model: Path
    incumbent: Path | None
    digest: str = ""
    eval_store: Path
    max_tokens: int
    rows_per_batch: int
    probes: tuple[Probe, ...]
    max_new_tokens: int = 64


class PhaseResult(BaseModel):
    """What one process found out; the fields of VerificationReport that are not of its phase are absent.

    The phase of a candidate whose adapter can be switched off tells of its base, too: then that needs no process.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    code: Path
    digest: str = ""
    reply: str = ""
    candidate_sums: tuple[float, ...] = ()
    base_sums: tuple[float, ...] | None = None
    incumbent_sums: tuple[float, ...] | None = None
    incumbent_problem: str | None = None
    incumbent_unseen: tuple[int, ...] | None = None
    num_targets: tuple[int, ...] = ()
    candidate_answers: tuple[str, ...] = ()
    base_answers: tuple[str, ...] = ()


class VerificationReport(BaseModel):
    """Loss sums are nats per conversation of the eval split, in order.

    `incumbent_sums` is None if there is no incumbent, or it cannot be compared; then `incumbent_problem` says why.
    `incumbent_unseen` are the conversations that the incumbent was not trained on, None if nothing says what it was.
    `code` is the folder of the code that ran, `digest` that of the candidate's chat format.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    code: Path
    digest: str = ""
    reply: str
    candidate_sums: tuple[float, ...]
    base_sums: tuple[float, ...]
    incumbent_sums: tuple[float, ...] | None
    incumbent_problem: str | None
    incumbent_unseen: tuple[int, ...] | None = None
    num_targets: tuple[int, ...]
    candidate_answers: tuple[str, ...]
    base_answers: tuple[str, ...]


def prove(
    version_uri: str,
    incumbent_uri: str | None,
    uri: str,
    *,
    prepared: Folder,
    max_tokens: int,
    rows_per_batch: int,
    probes: tuple[Probe, ...],
    timeout_seconds: float = 1800.0,
    earlier: VerificationReport | None = None,
) -> VerificationReport:
    """Runs the proof in new Pythons. Raises RuntimeError with the last words of one that fails, and what MLflow raises.

    An incumbent that cannot be scored, for whatever reason, is no failure: `incumbent_problem` says why.

    Args:
        version_uri, incumbent_uri: models:/NAME/VERSION.
        uri: of the registry.
        prepared: where the data of the search lies; its eval split is scored.
        timeout_seconds: for each of candidate, base and incumbent.
        earlier: the proof of this version against another incumbent; only the incumbent is scored then.
    """
    with tempfile.TemporaryDirectory(prefix="turnwise-proof-") as name:
        folder = Path(name)
        model, problem = _downloaded(version_uri, uri, folder / "candidate", part="" if earlier is None else CODE)
        if model is None:
            raise RuntimeError(f"{version_uri} {problem}")
        request = VerificationRequest(
            model=model,
            incumbent=None,
            eval_store=PreparedDataset.open(prepared).eval.path,
            max_tokens=max_tokens,
            rows_per_batch=rows_per_batch,
            probes=probes,
        )
        proof = earlier or _of_candidate(request, version_uri, timeout_seconds)
        about: dict[str, Any] = dict.fromkeys(ABOUT_INCUMBENT)
        if incumbent_uri is not None:
            request = request.model_copy(update={"phase": "incumbent", "digest": proof.digest})
            about |= _of_incumbent(request, incumbent_uri, uri, folder / "incumbent", timeout_seconds)
        return proof.model_copy(update=about)


def _of_candidate(request: VerificationRequest, version_uri: str, timeout_seconds: float) -> VerificationReport:
    try:
        found = _in_new_process(request, timeout_seconds)
    except _PhaseError as error:
        raise RuntimeError(f"{version_uri} {error}") from None
    if found.base_sums is None:
        try:
            base = _in_new_process(request.model_copy(update={"phase": "base"}), timeout_seconds)
        except _PhaseError as error:
            raise RuntimeError(f"the base model of {version_uri}, which it is compared with, {error}") from None
        found = found.model_copy(update={"base_sums": base.base_sums, "base_answers": base.base_answers})
    return VerificationReport.model_validate(found.model_dump())


def _of_incumbent(
    request: VerificationRequest, incumbent_uri: str, uri: str, target: Path, timeout_seconds: float
) -> dict[str, Any]:
    """The fields of VerificationReport that tell of it."""
    incumbent, problem = _downloaded(incumbent_uri, uri, target)
    if incumbent is None:
        return {"incumbent_problem": problem}
    try:
        found = _in_new_process(request.model_copy(update={"incumbent": incumbent}), timeout_seconds)
    except _PhaseError as error:
        return {"incumbent_problem": str(error)}
    return found.model_dump(include=set(ABOUT_INCUMBENT))


def _downloaded(version_uri: str, uri: str, target: Path, part: str = "") -> tuple[Path | None, str | None]:
    """The version's folder, or why it has none for good. `part`: only this folder of it."""
    try:
        folder = download_version(version_uri, uri, target, part)
    except MLFLOW_ERRORS as error:
        if isinstance(error, MlflowException) and not is_final(error):
            raise
        return None, f"cannot be downloaded: {reason_of(error)}"
    if not (folder / CODE).is_dir():
        return None, "cannot be downloaded whole: its files are gone"
    return folder, None


class _PhaseError(Exception):
    """Why a phase gave no result; the sentence's subject is the model it was about."""


def _in_new_process(request: VerificationRequest, timeout_seconds: float) -> PhaseResult:
    code, package = request.model / CODE, package_name(request.model)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with tempfile.TemporaryDirectory(prefix="turnwise-phase-") as name:
        asked, answered = Path(name) / "request.json", Path(name) / "answer.json"
        asked.write_text(request.model_dump_json(), encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-m", f"{package}.registry.verification", str(asked), str(answered)],
                cwd=code,  # `-m` looks there first
                env=environment,
                capture_output=True,
                text=True,
                timeout=timeout_seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise _PhaseError(
                f"was not proven within {timeout_seconds:.0f} seconds; raise registry.proof_minutes"
            ) from None
        if done.returncode != 0:
            raise _PhaseError(_last_words(done.returncode, done.stderr))
        result = PhaseResult.model_validate_json(answered.read_text(encoding="utf-8"))
    if not result.code.samefile(code / package):
        raise _PhaseError(f"was not proven: the code in {result.code} ran instead of its own")
    return result


def _last_words(returncode: int, stderr: str) -> str:
    last = without_secrets((stderr.strip().splitlines() or ["no word"])[-1])
    if returncode in (OUT_OF_MEMORY, -signal.SIGKILL):
        told = "it was killed, as the kernel does when memory runs out" if returncode < 0 else last
        return (
            f"does not fit into the memory of the machine that proves it ({told}); prove it on a larger one, or choose"
            " fewer batch.rows_per_micro_batch or a smaller data.max_tokens"
        )
    return f"does not load and talk in a fresh process: {last}"


def answer(request: VerificationRequest) -> PhaseResult:
    """One phase of the proof, in this process."""
    found = PHASES[request.phase](request)
    return PhaseResult(code=INSTALLED, **found)


def _candidate(request: VerificationRequest) -> dict[str, Any]:
    served = mlflow.pyfunc.load_model(str(request.model))
    question = [dict(turn) for turn in (request.probes or (GREETING,))[0].messages]
    reply = served.predict({"messages": question, "max_tokens": request.max_new_tokens, "temperature": 0.0})
    candidate: LoadedModel = served.get_raw_model().loaded
    sums, num_targets = _scores(candidate, request)
    found = {
        "digest": candidate.chat_format.digest(),
        "reply": _shown(reply["choices"][0]["message"]),
        "candidate_sums": sums,
        "num_targets": num_targets,
        "candidate_answers": _answers(candidate, request),
    }
    return found | _of_switched_off(candidate, request)


def _of_switched_off(candidate: LoadedModel, request: VerificationRequest) -> dict[str, Any]:
    """Of the base model at the candidate's precision, where it is the candidate without its adapter: LoRA, not quantized."""
    adapted: Any = candidate.model
    if not hasattr(adapted, "disable_adapter") or getattr(adapted.get_base_model(), "is_quantized", False):
        return {}
    with adapted.disable_adapter():
        return {"base_sums": _scores(candidate, request)[0], "base_answers": _answers(candidate, request)}


def _base(request: VerificationRequest) -> dict[str, Any]:
    """Of the base model, loaded whole and scored at the precision the candidate was trained in."""
    base = load_base_of(request.model / "artifacts" / "package")
    return {"base_sums": _scores(base, request)[0], "base_answers": _answers(base, request)}


def _incumbent(request: VerificationRequest) -> dict[str, Any]:
    sums, problem = _incumbent_sums(request.digest, request)
    if sums is not None and not math.isfinite(total := sum(sums)):
        return {"incumbent_problem": f"scores {total} nats here, which nothing can be compared with"}
    return {
        "incumbent_sums": sums,
        "incumbent_problem": problem,
        "incumbent_unseen": None if sums is None else _unseen(request),
    }


PHASES = {"candidate": _candidate, "base": _base, "incumbent": _incumbent}


def _shown(message: dict[str, Any]) -> str:
    """Its words and the calls that it makes: a model may answer with nothing else."""
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in (message["content"], *calls) if part)


def _scores(loaded: LoadedModel, request: VerificationRequest) -> tuple[tuple[float, ...], tuple[int, ...]]:
    store = TokenStore(request.eval_store)
    losses = score(loaded, store, max_tokens=request.max_tokens, rows_per_batch=request.rows_per_batch)
    return tuple(loss.loss_sum for loss in losses), tuple(loss.num_targets for loss in losses)


def _answers(loaded: LoadedModel, request: VerificationRequest) -> tuple[str, ...]:
    return tuple(
        generate_reply(loaded, probe.conversation(), max_new_tokens=request.max_new_tokens) for probe in request.probes
    )


def _incumbent_sums(digest: str, request: VerificationRequest) -> tuple[tuple[float, ...] | None, str | None]:
    """Loss sums of the version that holds the alias, or why they say nothing about the candidate's."""
    if request.incumbent is None:
        return None, None
    try:
        incumbent = load_trained(request.incumbent / "artifacts" / "package")
        read_trained_on(request.incumbent / "artifacts" / "package")
    except (ValueError, OSError) as error:
        return None, f"cannot be loaded here: {error}"
    if problem := _incomparable(incumbent.chat_format, digest, request):
        return None, problem
    return _scores(incumbent, request)[0], None


def _incomparable(chat_format: ChatFormat, digest: str, request: VerificationRequest) -> str | None:
    """Why losses under the incumbent's chat format say nothing beside those under the candidate's, which has the digest."""
    store = TokenStore(request.eval_store)
    others = find_render_differences(store, chat_format, request.max_tokens)
    if others is None:  # data of before conversations were kept: only an equal format is sure to render them alike
        same = chat_format.digest() == digest
        return None if same else "has another tokenizer or chat format, so losses per target cannot be compared"
    if not others:
        return None
    return (
        f"renders {len(others)} of {len(store)} held-out conversations to other tokens (the first: {others[0]}), so losses"
        " per target cannot be compared"
    )


def _unseen(request: VerificationRequest) -> tuple[int, ...] | None:
    assert request.incumbent is not None
    return unseen_conversations(
        TokenStore(request.eval_store), read_trained_on(request.incumbent / "artifacts" / "package")
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, of Python, of torch on a CPU (a RuntimeError by its words), or of the system."""
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def main(asked: Path, answered: Path) -> int:
    request = VerificationRequest.model_validate_json(asked.read_text(encoding="utf-8"))
    try:
        result = answer(request)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print((str(error).strip().splitlines() or [type(error).__name__])[0], file=sys.stderr)
        return OUT_OF_MEMORY
    answered.write_text(result.model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
