"""Proof, in a fresh process, that a registered version loads, talks and scores as it was trained to.

    python -m components.tracking.proof REQUEST.json ANSWER.json

The version is downloaded from the registry, and the process runs in its folder, on the code that lies in it: what works
here works for whoever loads the version.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict

import components
from components.batches.comparable import rendered_otherwise, unseen
from components.batches.prepare import PreparedDataset
from components.batches.store import TokenStore
from components.batches.trained_on import read_trained_on
from components.conversations.chat_format import ChatFormat
from components.models.trained import LoadedModel, load_base_of, load_trained
from components.storage.folder import Folder
from components.tracking.probes import Probe
from components.tracking.store import MLFLOW_ERRORS, download_version, is_final, reason_of, without_secrets
from components.training.evaluate import score
from components.training.generate import generate_reply

GREETING = Probe(messages=({"role": "user", "content": "Hello, who are you?"},))


class ProofRequest(BaseModel):
    """`model` and `incumbent` are folders of downloaded versions. `rows_per_batch`: the trial's, so that sums are alike."""

    model_config = ConfigDict(frozen=True)

    model: Path
    incumbent: Path | None
    eval_store: Path
    max_tokens: int
    rows_per_batch: int
    probes: tuple[Probe, ...]
    max_new_tokens: int = 64


class ProofAnswer(BaseModel):
    """Loss sums are nats per conversation of the eval split, in order.

    `incumbent_sums` is None if there is no incumbent, or it cannot be compared; then `incumbent_problem` says why.
    `incumbent_unseen` are the conversations that the incumbent was not trained on, None if nothing says what it was.
    `code` is the folder of the code that ran.
    """

    model_config = ConfigDict(frozen=True)

    code: Path
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
) -> ProofAnswer:
    """Runs the proof in a new Python. Raises RuntimeError with its last words if it fails, and what MLflow raises.

    Args:
        version_uri, incumbent_uri: models:/NAME/VERSION.
        uri: of the registry.
        prepared: where the data of the search lies; its eval split is scored.
    """
    with tempfile.TemporaryDirectory(prefix="turnwise-proof-") as name:
        folder = Path(name)
        model, problem = _downloaded(version_uri, uri, folder / "candidate")
        if model is None:
            raise RuntimeError(f"{version_uri} {problem}")
        incumbent, problem = _downloaded(incumbent_uri, uri, folder / "incumbent") if incumbent_uri else (None, None)
        request = ProofRequest(
            model=model,
            incumbent=incumbent,
            eval_store=PreparedDataset.open(prepared).eval.path,
            max_tokens=max_tokens,
            rows_per_batch=rows_per_batch,
            probes=probes,
        )
        proof = _in_new_process(request, folder, version_uri, timeout_seconds)
        return proof.model_copy(update={"incumbent_problem": problem}) if problem else proof


def _downloaded(version_uri: str, uri: str, target: Path) -> tuple[Path | None, str | None]:
    """The version's folder, or why it has none for good."""
    try:
        folder = download_version(version_uri, uri, target)
    except MLFLOW_ERRORS as error:
        if isinstance(error, MlflowException) and not is_final(error):
            raise
        return None, f"cannot be downloaded: {reason_of(error)}"
    if not (folder / "code").is_dir():
        return None, "cannot be downloaded whole: its files are gone"
    return folder, None


def _in_new_process(request: ProofRequest, folder: Path, version_uri: str, timeout_seconds: float) -> ProofAnswer:
    asked, answered = folder / "request.json", folder / "answer.json"
    asked.write_text(request.model_dump_json(), encoding="utf-8")
    code = request.model / "code"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "components.tracking.proof", str(asked), str(answered)],
            cwd=code,  # `-m` looks there first
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout_seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(
            f"{version_uri} was not proven within {timeout_seconds:.0f} seconds; raise registry.proof_minutes"
        ) from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise RuntimeError(f"{version_uri} does not load and talk in a fresh process: {without_secrets(last)}")
    proof = ProofAnswer.model_validate_json(answered.read_text(encoding="utf-8"))
    if not proof.code.samefile(code / "components"):
        raise RuntimeError(f"{version_uri} was not proven: the code in {proof.code} ran instead of its own")
    return proof


def answer(request: ProofRequest) -> ProofAnswer:
    """The proof itself, in this process."""
    served = mlflow.pyfunc.load_model(str(request.model))
    question = [dict(turn) for turn in (request.probes or (GREETING,))[0].messages]
    reply = served.predict({"messages": question, "max_tokens": request.max_new_tokens, "temperature": 0.0})
    candidate: LoadedModel = served.get_raw_model().loaded
    candidate_sums, num_targets = _scores(candidate, request)
    candidate_answers = _answers(candidate, request)
    base_sums, base_answers = _of_base(candidate, request)
    digest = candidate.chat_format.digest()
    del served, candidate  # one model after another: a card may not hold two
    gc.collect()
    incumbent_sums, incumbent_problem = _incumbent_sums(digest, request)
    incumbent_unseen = None if incumbent_sums is None else _unseen(request)
    return ProofAnswer(
        code=Path(components.__path__[0]),
        reply=str(reply["choices"][0]["message"]["content"]),
        candidate_sums=candidate_sums,
        base_sums=base_sums,
        incumbent_sums=incumbent_sums,
        incumbent_problem=incumbent_problem,
        incumbent_unseen=incumbent_unseen,
        num_targets=num_targets,
        candidate_answers=candidate_answers,
        base_answers=base_answers,
    )


def _scores(loaded: LoadedModel, request: ProofRequest) -> tuple[tuple[float, ...], tuple[int, ...]]:
    store = TokenStore(request.eval_store)
    losses = score(loaded, store, max_tokens=request.max_tokens, rows_per_batch=request.rows_per_batch)
    return tuple(loss.loss_sum for loss in losses), tuple(loss.num_targets for loss in losses)


def _answers(loaded: LoadedModel, request: ProofRequest) -> tuple[str, ...]:
    return tuple(
        generate_reply(loaded, probe.conversation(), max_new_tokens=request.max_new_tokens) for probe in request.probes
    )


def _of_base(candidate: LoadedModel, request: ProofRequest) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """Loss sums and answers of the base model."""
    with _base_of(candidate) as base:
        return _scores(base, request)[0], _answers(base, request)


@contextlib.contextmanager
def _base_of(candidate: LoadedModel) -> Iterator[LoadedModel]:
    """The base model at the candidate's precision: the candidate without its adapter, or (full, quantized) read anew."""
    adapted: Any = candidate.model
    if not hasattr(adapted, "disable_adapter") or getattr(adapted.get_base_model(), "is_quantized", False):
        yield load_base_of(candidate)
        return
    with adapted.disable_adapter():
        yield candidate


def _incumbent_sums(digest: str, request: ProofRequest) -> tuple[tuple[float, ...] | None, str | None]:
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


def _incomparable(chat_format: ChatFormat, digest: str, request: ProofRequest) -> str | None:
    """Why losses under the incumbent's chat format say nothing beside those under the candidate's, which has the digest."""
    store = TokenStore(request.eval_store)
    others = rendered_otherwise(store, chat_format, request.max_tokens)
    if others is None:  # data of before conversations were kept: only an equal format is sure to render them alike
        same = chat_format.digest() == digest
        return None if same else "has another tokenizer or chat format, so losses per target cannot be compared"
    if not others:
        return None
    return (
        f"renders {len(others)} of {len(store)} held-out conversations to other tokens (the first: {others[0]}), so losses"
        " per target cannot be compared"
    )


def _unseen(request: ProofRequest) -> tuple[int, ...] | None:
    assert request.incumbent is not None
    return unseen(TokenStore(request.eval_store), read_trained_on(request.incumbent / "artifacts" / "package"))


if __name__ == "__main__":
    asked = ProofRequest.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(answer(asked).model_dump_json(), encoding="utf-8")
