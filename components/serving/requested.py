"""What a request asks of one model: prompts of tokens, how replies are made, and how they are written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from components.conversations.openai_messages import messages_of
from components.errors import InputError
from components.inference.generate import prompt_of, room_for_reply
from components.inference.token_choice import TokenChance
from components.scoring.reply import Reply
from components.serving import chat_response
from components.serving.chat_request import ChatRequest, CompletionRequest, Sampling
from components.serving.chat_response import ResponseHead
from components.serving.limits import Limits
from components.serving.pending_reply import Drawing, PendingReply, ReplyPiece
from components.serving.served_models import ServedModel

Logprobs = Callable[[Sequence[TokenChance]], dict[str, Any] | None]


@dataclass(frozen=True, kw_only=True)
class Requested:
    """One request, read for the model that answers it. `index` below is that of a choice: replies of a prompt in a row."""

    served: ServedModel
    head: ResponseHead
    prompts: Sequence[Sequence[int]]
    reply_tokens: Sequence[int]  # of each prompt's replies
    choices: int
    drawing: Drawing
    stops: Sequence[str]
    include_usage: bool
    in_pieces: bool
    is_chat: bool

    @property
    def prompt_lengths(self) -> list[int]:
        return [len(prompt) for prompt in self.prompts]

    def pending(self) -> list[PendingReply]:
        """Returns the replies, to be submitted. Called in the event loop."""
        return [
            PendingReply(
                self.served,
                prompt,
                self.drawing,
                index=place * self.choices + number,
                reply_tokens=reply_tokens,
                stops=self.stops,
                only_words=self.is_chat,
                in_pieces=self.in_pieces,
            )
            for place, (prompt, reply_tokens) in enumerate(zip(self.prompts, self.reply_tokens, strict=True))
            for number in range(self.choices)
        ]

    def choice(self, index: int, reply: Reply, chances: Sequence[TokenChance]) -> dict[str, Any]:
        if self.is_chat:
            return chat_response.chat_choice(index, reply, self._logprobs(chances))
        return chat_response.text_choice(index, reply.text, _reason(reply), self._logprobs(chances))

    def first_chunk(self, index: int) -> dict[str, Any] | None:
        return chat_response.first_chunk(index) if self.is_chat else None

    def piece_chunk(self, index: int, piece: ReplyPiece) -> dict[str, Any]:
        if self.is_chat:
            return chat_response.piece_chunk(index, piece.text, self._logprobs(piece.chances))
        return chat_response.text_choice(index, piece.text, None, self._logprobs(piece.chances))

    def last_chunk(self, index: int, reply: Reply) -> dict[str, Any]:
        if self.is_chat:
            return chat_response.last_chunk(index, reply)
        return chat_response.text_choice(index, "", _reason(reply))

    def _logprobs(self, chances: Sequence[TokenChance]) -> dict[str, Any] | None:
        if self.drawing.alternatives is None:
            return None
        write = chat_response.chat_logprobs if self.is_chat else chat_response.text_logprobs
        return write(chances, self.served.loaded.tokenizer)


def requested_chat(served: ServedModel, request: ChatRequest) -> Requested:
    """Raises InputError for what the model or the limits refuse."""
    limits = served.thread.limits
    if len(request.messages) > limits.messages:
        raise InputError(f"messages: {len(request.messages):,} of them, and the limit is {limits.messages:,}")
    messages = messages_of(request.messages)
    with served.prompts:
        prompt = prompt_of(served.loaded, messages, request.offered_tools)
    return _requested(
        served,
        request,
        [prompt],
        wanted_tokens=request.reply_tokens,
        alternatives=request.alternatives,
        head=ResponseHead(served.id),
    )


def requested_completion(served: ServedModel, request: CompletionRequest) -> Requested:
    """Raises InputError for what the model or the limits refuse."""
    prompts = []
    for number, given in enumerate(request.prompts, start=1):
        with served.prompts:
            prompt = served.loaded.tokenizer(given)["input_ids"] if isinstance(given, str) else given
        if not prompt:
            raise InputError(f"prompt {number}: empty; there is nothing to go on from")
        served.loaded.check_token_ids(dict.fromkeys(prompt, f"is in prompt {number}"))
        prompts.append(prompt)
    if not prompts:
        raise InputError("prompt: empty; give a text")
    return _requested(
        served,
        request,
        prompts,
        wanted_tokens=request.max_tokens,
        alternatives=request.logprobs,
        head=ResponseHead(served.id, kind="text_completion", prefix="cmpl"),
    )


def _requested(
    served: ServedModel,
    request: Sampling,
    prompts: Sequence[Sequence[int]],
    *,
    wanted_tokens: int | None,
    alternatives: int | None,
    head: ResponseHead,
) -> Requested:
    limits, choices = served.thread.limits, request.n or 1
    if problems := _beyond(limits, prompts, choices, wanted_tokens):
        raise InputError("; ".join(problems))
    wanted = limits.default_reply_tokens if wanted_tokens is None else wanted_tokens
    return Requested(
        served=served,
        head=head,
        prompts=prompts,
        reply_tokens=[min(wanted, room_for_reply(served.loaded, len(prompt))) for prompt in prompts],
        choices=choices,
        drawing=Drawing(
            temperature=request.drawing,
            top_p=1.0 if request.top_p is None else request.top_p,
            seed=request.seed,
            alternatives=alternatives,
        ),
        stops=request.stop or (),
        include_usage=request.stream_options is not None and request.stream_options.include_usage,
        in_pieces=bool(request.stream),
        is_chat=isinstance(request, ChatRequest),
    )


def _beyond(limits: Limits, prompts: Sequence[Sequence[int]], choices: int, tokens: int | None) -> list[str]:
    """Returns what is more than the limits allow."""
    longest = max(map(len, prompts))
    counts = {
        "n": (choices, limits.choices),
        "max_tokens": (tokens or 0, limits.reply_tokens),
        "the prompt's tokens": (longest, limits.prompt_tokens),
        "prompts times n": (len(prompts) * choices, limits.waiting),
    }
    return [f"{name}: {found:,}, and the limit is {most:,}" for name, (found, most) in counts.items() if found > most]


def _reason(reply: Reply) -> str:
    return "stop" if reply.stopped else "length"
