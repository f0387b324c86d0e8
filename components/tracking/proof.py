"""Proof, in a fresh process, that a registered version loads, talks and scores as it was trained to.

    python -m components.tracking.proof REQUEST.json ANSWER.json

The process knows nothing but the registry's address: what works here works for whoever loads the version.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlflow.artifacts
import mlflow.pyfunc
import torch
from pydantic import BaseModel, ConfigDict

from components.batches.store import TokenStore
from components.conversations.messages import Message
from components.models.trained import LoadedModel, load_base, load_trained
from components.training.evaluate import conversation_losses
from components.training.generate import generate_reply
from components.training.loss import ScoredModel
from components.training.workers import OneWorker

ROWS_PER_BATCH = 4


class Probe(BaseModel):
    """A held-out question, and a word its answer should hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    messages: tuple[dict[str, str], ...]
    expect: str | None = None


class ProofRequest(BaseModel):
    model_config = ConfigDict(frozen=True)

    tracking_uri: str
    version_uri: str
    incumbent_uri: str | None
    eval_store: Path
    max_tokens: int
    probes: tuple[Probe, ...]
    max_new_tokens: int = 64


class ProofAnswer(BaseModel):
    """Loss sums are nats per conversation of the eval split, in order; incumbent_sums is None if not comparable."""

    model_config = ConfigDict(frozen=True)

    reply: str
    candidate_sums: tuple[float, ...]
    base_sums: tuple[float, ...]
    incumbent_sums: tuple[float, ...] | None
    num_targets: tuple[int, ...]
    candidate_answers: tuple[str, ...]
    base_answers: tuple[str, ...]


def prove(request: ProofRequest, *, timeout_seconds: float = 1800.0) -> ProofAnswer:
    """Runs the proof in a new Python. Raises RuntimeError with its last words if it fails."""
    with tempfile.TemporaryDirectory(prefix="turnwise-proof-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(request.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "components.tracking.proof", str(asked), str(answered)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_seconds, check=False)
        except subprocess.TimeoutExpired:
            raise RuntimeError(f"{request.version_uri} was not proven within {timeout_seconds:.0f} seconds") from None
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["no word"])[-1]
            raise RuntimeError(f"{request.version_uri} does not load and talk in a fresh process: {last}")
        return ProofAnswer.model_validate_json(answered.read_text(encoding="utf-8"))


def answer(request: ProofRequest) -> ProofAnswer:
    """The proof itself, in this process."""
    mlflow.set_tracking_uri(request.tracking_uri)
    mlflow.set_registry_uri(request.tracking_uri)
    torch.set_num_threads(max(1, torch.get_num_threads()))
    served = mlflow.pyfunc.load_model(request.version_uri)
    question = [dict(message) for message in (request.probes[0].messages if request.probes else _GREETING)]
    reply = served.predict({"messages": question, "max_tokens": request.max_new_tokens, "temperature": 0.0})
    candidate = served.unwrap_python_model().loaded
    candidate_sums, num_targets = _scores(candidate, request)
    candidate_answers = _answers(candidate, request)
    with _base_of(candidate) as base:
        base_sums, _ = _scores(base, request)
        base_answers = _answers(base, request)
    return ProofAnswer(
        reply=str(reply["choices"][0]["message"]["content"]),
        candidate_sums=candidate_sums,
        base_sums=base_sums,
        incumbent_sums=_incumbent_sums(candidate, request),
        num_targets=num_targets,
        candidate_answers=candidate_answers,
        base_answers=base_answers,
    )


_GREETING = ({"role": "user", "content": "Hello, who are you?"},)


def _scores(loaded: LoadedModel, request: ProofRequest) -> tuple[tuple[float, ...], tuple[int, ...]]:
    scored = ScoredModel(loaded.model, precision=loaded.precision, attention=loaded.attention, device=loaded.device)
    losses = conversation_losses(
        scored,
        TokenStore(request.eval_store),
        OneWorker(loaded.device),
        max_tokens=request.max_tokens,
        rows_per_batch=ROWS_PER_BATCH,
        pad_token_id=loaded.chat_format.pad_token_id,
    )
    in_order = sorted(losses, key=lambda loss: loss.index)
    return tuple(loss.loss_sum for loss in in_order), tuple(loss.num_targets for loss in in_order)


def _answers(loaded: LoadedModel, request: ProofRequest) -> tuple[str, ...]:
    questions = [[Message(role=m["role"], content=m["content"]) for m in probe.messages] for probe in request.probes]  # type: ignore[arg-type]
    return tuple(generate_reply(loaded, question, max_new_tokens=request.max_new_tokens) for question in questions)


@contextlib.contextmanager
def _base_of(candidate: LoadedModel) -> Iterator[LoadedModel]:
    """The base model at the candidate's precision: the candidate without its adapter, or read anew."""
    assert candidate.reference is not None
    if hasattr(candidate.model, "disable_adapter"):
        with candidate.model.disable_adapter():
            yield candidate
        return
    base = load_base(candidate.reference.model, candidate.reference.chat_format, device=candidate.device)
    yield LoadedModel(
        model=base.model,
        tokenizer=base.tokenizer,
        chat_format=base.chat_format,
        device=base.device,
        attention=base.attention,
        precision=candidate.precision,
    )


def _incumbent_sums(candidate: LoadedModel, request: ProofRequest) -> tuple[float, ...] | None:
    """Loss sums of the version that holds the alias; None if it counts its targets in other tokens."""
    if request.incumbent_uri is None:
        return None
    folder = Path(mlflow.artifacts.download_artifacts(request.incumbent_uri)) / "artifacts" / "package"
    incumbent = load_trained(folder)
    if incumbent.chat_format.digest() != candidate.chat_format.digest():
        return None
    return _scores(incumbent, request)[0]


if __name__ == "__main__":
    asked = ProofRequest.model_validate_json(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(sys.argv[2]).write_text(answer(asked).model_dump_json(), encoding="utf-8")
