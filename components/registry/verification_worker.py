"""One phase of a verification, in a fresh process that runs the code that the version brings.

    python -m PACKAGE.registry.verification_worker REQUEST.json RESULT.json

PACKAGE is the name of the version's own package (own_code), and the process runs in the folder that holds it: what works
here works wherever the version is loaded. Candidate, base model and incumbent are phases, each in a process of its own, so
that memory holds one model at a time, and a model that does not fit ends no process but its own.
"""

from __future__ import annotations

import errno
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import torch

from components.conversations.chat_formats import with_thoughts
from components.conversations.openai_messages import openai_call
from components.data.comparable_conversations import find_render_differences, render_anew, unseen_conversations
from components.data.token_store import TokenStore, write_store
from components.data.trained_on import read_trained_on
from components.inference.generate import reply_to
from components.models.base.context import longest_of
from components.models.load_trained import LoadedModel, load_base_of, load_trained
from components.records.evaluation_record import ConversationScores
from components.records.general_scores import GeneralScores
from components.records.loss_views import LossViews
from components.registry.model_package import package_in
from components.registry.own_code import INSTALLED
from components.registry.probes import Probe
from components.registry.verification_messages import OUT_OF_MEMORY, PhaseResult, VerificationRequest
from components.scoring.kept_casts import casts_kept
from components.scoring.score_model import asked_of, score_model
from components.training.evaluate import ConversationLoss, score, score_with_views
from components.training.general_loss import score_general_text

ROOM_FOR_THOUGHTS = 512  # tokens
JUDGED_TOKENS = 128  # of an answer that only a judge reads
GREETING = Probe(messages=({"role": "user", "content": "Hello, who are you?"},))


def verify(request: VerificationRequest) -> PhaseResult:
    """Runs one phase, in this process."""
    return PHASES[request.phase](request)


def _verify_candidate(request: VerificationRequest) -> PhaseResult:
    """Asks the candidate a question as MLflow's users do, and scores it."""
    served = mlflow.pyfunc.load_model(str(request.model), suppress_warnings=True)  # nobody reads them
    candidate = _frozen(served.get_raw_model().loaded)
    question = [dict(message) for message in (request.probes or (GREETING,))[0].messages]
    reply = served.predict({"messages": question, "max_tokens": request.max_new_tokens, "temperature": 0.0})
    in_training = [] if request.eval_store is None else _score_on(candidate, TokenStore(request.eval_store), request)
    losses, views = _score_with_views(candidate, request)
    answers = _answer_probes(candidate, request)
    return PhaseResult(
        code=INSTALLED,
        digest=candidate.chat_format.digest(),
        scores_thoughts=candidate.chat_format.scores_thoughts,
        reply=text_of_reply(reply["choices"][0]["message"]) or text_of_thought(reply),
        candidate_sums=_sums(losses),
        target_bytes=tuple(TokenStore(request.judged_store).target_bytes.tolist()),
        parameters=sum(weight.numel() for weight in candidate.model.parameters()),
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in candidate.model.parameters()),
        num_targets=_targets(losses),
        eval_sums=_sums(in_training),
        eval_targets=_targets(in_training),
        candidate_answers=answers,
        candidate_views=views,
        candidate_general=_score_general(candidate, request),
        candidate_replies=_score_replies(candidate, request),
        candidate_said=_said(candidate, request, answers),
        **_score_without_adapter(candidate, request),
    )


def _score_without_adapter(candidate: LoadedModel, request: VerificationRequest) -> dict[str, Any]:
    """Fields about the base model, at the candidate's precision.

    None where the base is not the candidate without its adapter: after full fine-tuning, and beside quantized weights.
    """
    adapted: Any = candidate.model
    if not hasattr(adapted, "disable_adapter") or getattr(adapted.get_base_model(), "is_quantized", False):
        return {}
    with adapted.disable_adapter():
        return _about_base(candidate, request)


def _verify_base(request: VerificationRequest) -> PhaseResult:
    """Scores the base model, loaded whole, at the precision that the candidate was trained in."""
    base = _frozen(load_base_of(package_in(request.model)))
    return PhaseResult(code=INSTALLED, **_about_base(base, request))


def _frozen(loaded: LoadedModel) -> LoadedModel:
    """The same model, of which nobody asks a gradient.

    While it computes, autocast keeps a 16-bit copy of each float32 weight that has one: half a model beside the model.
    """
    loaded.model.requires_grad_(False)
    return loaded


def _about_base(base: LoadedModel, request: VerificationRequest) -> dict[str, Any]:
    losses, views = _score_with_views(base, request)
    answers = _answer_probes(base, request)
    return {
        "base_sums": _sums(losses),
        "base_answers": answers,
        "base_views": views,
        "base_general": _score_general(base, request),
        "base_replies": _score_replies(base, request),
        "base_said": _said(base, request, answers),
    }


def _verify_incumbent(request: VerificationRequest) -> PhaseResult:
    """Scores the version that holds the alias, or says why its losses cannot be compared with the candidate's.

    On the candidate's own tokens if its chat format gives the same ones, else on the same words, for bits per byte.
    """
    assert request.incumbent is not None
    package = package_in(request.incumbent)
    try:
        incumbent, trained_on = _frozen(load_trained(package)), read_trained_on(package)
    except (ValueError, OSError) as error:
        return _incomparable(f"cannot be loaded here: {error}")
    beside = {
        "incumbent_general": _score_general(incumbent, request),
        "incumbent_replies": _score_replies(incumbent, request),
        "incumbent_answers": (answers := _answer_probes(incumbent, request)),
        "incumbent_said": _said(incumbent, request, answers),
    }
    return _compare_incumbent(incumbent, trained_on, request).model_copy(update=beside)


def _compare_incumbent(
    incumbent: LoadedModel, trained_on: frozenset[str] | None, request: VerificationRequest
) -> PhaseResult:
    store = TokenStore(request.judged_store)
    others = find_render_differences(store, incumbent.chat_format, request.max_tokens, request.context)
    # Where the prepared data keeps no conversations, only an equal format is sure to give equal tokens.
    if others is None and incumbent.chat_format.digest() != request.digest:
        return _incomparable(
            "has another tokenizer or chat format, and this prepared data keeps no text to render for it"
        )
    found = _score_by_bytes(incumbent, store, request) if others else _scored(_sums(_score(incumbent, request)))
    return found.model_copy(update={"incumbent_unseen": unseen_conversations(store, trained_on)})


def _score_by_bytes(incumbent: LoadedModel, store: TokenStore, request: VerificationRequest) -> PhaseResult:
    """Scores the incumbent on the same words in its own tokens, as far as both chat formats have them."""
    chat_format = with_thoughts(incumbent.chat_format, request.scores_thoughts)
    own = render_anew(store, chat_format, request.max_tokens, longest_of(incumbent.model.config))
    if not own.entries:
        return _incomparable(f"has no held-out conversation in common with the candidate; {own.left_out()}")
    with tempfile.TemporaryDirectory(prefix="turnwise-incumbent-") as folder:
        write_store(Path(folder) / "own.arrow", own.entries.values())
        losses = _score_on(incumbent, TokenStore(Path(folder) / "own.arrow"), request)
    sums = dict(zip(own.entries, _sums(losses), strict=True))
    found = _scored(tuple(sums.get(index, 0.0) for index in range(len(store))))
    return found.model_copy(update={"incumbent_by_bytes": tuple(own.entries), "incumbent_note": own.left_out() or None})


def _scored(sums: tuple[float, ...]) -> PhaseResult:
    if not math.isfinite(total := sum(sums)):
        return _incomparable(f"scores {total} nats here, which nothing can be compared with")
    return PhaseResult(code=INSTALLED, incumbent_sums=sums)


def _incomparable(problem: str) -> PhaseResult:
    return PhaseResult(code=INSTALLED, incumbent_problem=problem)


PHASES = {"candidate": _verify_candidate, "base": _verify_base, "incumbent": _verify_incumbent}


def text_of_reply(message: dict[str, Any]) -> str:
    """The words of a chat message and the calls that it makes: a model may answer with calls alone."""
    calls = [f"{call['function']['name']}({call['function']['arguments']})" for call in message.get("tool_calls") or ()]
    return "\n".join(part for part in (message["content"], *calls) if part)


def text_of_thought(reply: dict[str, Any]) -> str:
    """The reasoning of a completion: it may be all that a model says in a few tokens."""
    return str((reply.get("custom_outputs") or {}).get("reasoning_content", ""))


def _score(loaded: LoadedModel, request: VerificationRequest) -> list[ConversationLoss]:
    """On the split that judges."""
    return _score_on(loaded, TokenStore(request.judged_store), request)


def _score_on(loaded: LoadedModel, store: TokenStore, request: VerificationRequest) -> list[ConversationLoss]:
    return score(loaded, store, max_tokens=request.max_tokens, rows_per_batch=request.rows_per_batch)


def _score_with_views(
    loaded: LoadedModel, request: VerificationRequest
) -> tuple[list[ConversationLoss], LossViews | None]:
    store = TokenStore(request.judged_store)
    return score_with_views(loaded, store, max_tokens=request.max_tokens, rows_per_batch=request.rows_per_batch)


def _score_general(loaded: LoadedModel, request: VerificationRequest) -> GeneralScores | None:
    longest = min(request.max_tokens, request.context or request.max_tokens)
    return score_general_text(loaded, request.general, max_tokens=longest, rows_per_batch=request.rows_per_batch)


def _score_replies(loaded: LoadedModel, request: VerificationRequest) -> dict[str, ConversationScores]:
    """The scores of what the model says on the split that judges, each number at its conversation's place."""
    if request.generation is None:
        return {}
    asked, count = asked_of(request.generation, TokenStore(request.judged_store))
    at_once = request.rows_per_batch * request.max_tokens
    return score_model(
        loaded, asked, count, request.generation, max_tokens=request.max_tokens, max_batch_tokens=at_once
    )


def _sums(losses: Sequence[ConversationLoss]) -> tuple[float, ...]:
    return tuple(loss.loss_sum for loss in losses)


def _targets(losses: Sequence[ConversationLoss]) -> tuple[int, ...]:
    return tuple(loss.num_targets for loss in losses)


def _answer_probes(loaded: LoadedModel, request: VerificationRequest) -> tuple[str, ...]:
    with casts_kept(loaded):
        return tuple(answer_to(loaded, probe, request.max_new_tokens) for probe in request.probes)


def _said(loaded: LoadedModel, request: VerificationRequest, to_probes: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the answers that a judge compares, those to the probes first; none where no judge is asked."""
    if not request.judged:
        return ()
    with casts_kept(loaded):
        return (*to_probes, *(answer_to(loaded, question, JUDGED_TOKENS) for question in request.more_questions))


def answer_to(loaded: LoadedModel, probe: Probe, max_new_tokens: int) -> str:
    """The reply without its thought. A thought that leaves no room for an answer gets room of its own."""
    reply = reply_to(loaded, probe.conversation(), max_new_tokens=max_new_tokens)
    if reply.message.reasoning_content and not reply.stopped:
        reply = reply_to(loaded, probe.conversation(), max_new_tokens=max_new_tokens + ROOM_FOR_THOUGHTS)
    if not reply.message.reasoning_content:
        return reply.text
    calls = [dict(zip(("name", "arguments"), openai_call(call), strict=True)) for call in reply.message.tool_calls]
    return text_of_reply({"content": reply.message.content, "tool_calls": [{"function": call} for call in calls]})


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: a GPU's, Python's, torch's on a CPU (a RuntimeError, known by its words), or the system's."""
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    )


def main(request_file: Path, result_file: Path) -> int:
    request = VerificationRequest.model_validate_json(request_file.read_text(encoding="utf-8"))
    try:
        result = verify(request)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print((str(error).strip().splitlines() or [type(error).__name__])[0], file=sys.stderr)
        return OUT_OF_MEMORY
    result_file.write_text(result.model_dump_json(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1]), Path(sys.argv[2])))
