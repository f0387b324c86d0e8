"""Generates a model's next message, greedily or by sampling, whole or in pieces."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from itertools import takewhile
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from components.conversations.messages import Message
from components.errors import InputError
from components.inference.reply_text import ReplyText
from components.models.base.context import longest_of
from components.models.load_trained import LoadedModel
from components.models.precision import computing
from components.scoring.reply import Reply, clear_generation_config, generation_config, reply_of, until_stop
from components.storage.foreign_files import explain_foreign

CANNOT_GO_ON = "cannot answer"
LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.001, 100
MOST_NEW_TOKENS = 2**15  # of a model whose context has no end


class ReplyOptions(TypedDict, total=False):
    """How a reply is generated.

    max_new_tokens: 128 by default. A reply ends where the model's context does, too.
    temperature: 0, the default, is greedy, so the same question has the same answer; at most 100. Above 0 the next token is
        drawn from the whole distribution, by torch's global generator: nothing is cut off it but by `top_p`.
    top_p: the next token is drawn from the likeliest ones that together have this probability; 1 by default.
    tools: what the model may call, as OpenAI's API describes tools; none by default.
    """

    max_new_tokens: int
    temperature: float
    top_p: float
    tools: Sequence[dict[str, Any]]


def reply_to(loaded: LoadedModel, messages: Sequence[Message], **options: Unpack[ReplyOptions]) -> Reply:
    """Returns the assistant's next message. Raises InputError for a token that the model has no row for."""
    inputs = _inputs(loaded, messages, **options)
    with explain_foreign("the model", CANNOT_GO_ON), computing(loaded.precision, loaded.device):
        output_1T = loaded.model.generate(**inputs)
    prompt_tokens = inputs["input_ids"].shape[1]
    made = output_1T[0, prompt_tokens:].tolist()
    said = until_stop(made, loaded.chat_format)
    return reply_of(loaded.chat_format, said, prompt_tokens=prompt_tokens, stopped=len(said) < len(made))


def generate_reply(loaded: LoadedModel, messages: Sequence[Message], **options: Unpack[ReplyOptions]) -> str:
    """Returns the text of reply_to."""
    return reply_to(loaded, messages, **options).text


def stream_reply(
    loaded: LoadedModel, messages: Sequence[Message], *, only_words: bool = False, **options: Unpack[ReplyOptions]
) -> Generator[str, None, Reply]:
    """Yields the text of reply_to in pieces, as it is made, never half a character. Returns the whole reply.

    Closing the generator stops the model.

    Args:
        only_words: the pieces make up the message's content; what may be a tool call is held back until it is none.
    """
    inputs = _inputs(loaded, messages, **options)
    streamer = _TokenStreamer()
    inputs |= {"streamer": streamer, "stopping_criteria": StoppingCriteriaList([streamer.stop_requested])}
    thread = threading.Thread(target=streamer.run, args=(loaded, inputs), name="generate", daemon=True)
    thread.start()
    try:
        text = ReplyText(loaded.chat_format, only_words=only_words)
        yield from pieces_of(streamer.tokens(), text)
        return text.reply(inputs["input_ids"].shape[1])
    finally:
        streamer.stop()
        thread.join()


def pieces_of(tokens: Iterator[int], text: ReplyText) -> Iterator[str]:
    """Yields the text of tokens in pieces, until it has ended."""
    for token in tokens:
        if piece := text.add(token):
            yield piece
        if text.ended:
            break
    if piece := text.rest():
        yield piece


class _StopRequested(StoppingCriteria):  # type: ignore[misc]
    """Ends `generate` after the token that it is at, once `event` is set."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class _TokenStreamer(BaseStreamer):  # type: ignore[misc]
    """Hands tokens from the generating thread to another: `tokens` yields what `generate` makes, and raises its errors."""

    def __init__(self) -> None:
        self.stop_requested = _StopRequested()
        self._made: queue.Queue[list[int] | BaseException | None] = queue.Queue()
        self._prompt_is_over = False

    def run(self, loaded: LoadedModel, settings: dict[str, Any]) -> None:
        """Generates to the end, or until `stop`."""
        try:
            with computing(loaded.precision, loaded.device):
                loaded.model.generate(**settings)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that waits for the tokens
            self._made.put(error)
        else:
            self._made.put(None)

    def stop(self) -> None:
        self.stop_requested.event.set()

    def put(self, value: Tensor) -> None:
        if self._prompt_is_over:
            self._made.put(value.flatten().tolist())
        self._prompt_is_over = True  # the first value that a streamer gets is the prompt

    def end(self) -> None:
        """Does nothing: `run` marks the end, after an error too."""

    def tokens(self) -> Iterator[int]:
        while (made := self._made.get()) is not None:
            if isinstance(made, BaseException):
                with explain_foreign("the model", CANNOT_GO_ON):
                    raise made
            yield from made


def check_options(*, max_new_tokens: int = 1, temperature: float = 0.0, top_p: float = 1.0) -> None:
    """Raises InputError with all options that no reply can have."""
    problems = []
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        problems.append(f"max_new_tokens must be a whole number above 0, not {max_new_tokens!r}")
    # Below the least of them, the division of logits overflows.
    if not (temperature == 0 or LEAST_TEMPERATURE <= temperature <= MOST_TEMPERATURE):
        problems.append(
            f"temperature must be 0 (greedy), or from {LEAST_TEMPERATURE} to {MOST_TEMPERATURE}, not {temperature!r}"
        )
    if not 0 < top_p <= 1:
        problems.append(f"top_p must be above 0 and at most 1, not {top_p!r}")
    if problems:
        raise InputError("; ".join(problems))


def prompt_of(loaded: LoadedModel, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
    """Returns the tokens to which the model's reply is the next. Raises InputError for messages that have no prompt."""
    try:
        with explain_foreign("the prompt", "cannot be made of these messages"):
            token_ids = loaded.chat_format.prompt(messages, tools)
    except InputError as error:
        _explain_greeting(loaded, messages, tools, error)
        raise
    loaded.check_token_ids(dict.fromkeys(token_ids, "is in the prompt"))
    return token_ids


def _explain_greeting(
    loaded: LoadedModel, messages: Sequence[Message], tools: Sequence[dict[str, Any]], error: InputError
) -> None:
    """Raises InputError if what the template does not take is that the assistant speaks first: it would not say so."""
    talk = [position for position, message in enumerate(messages) if message.role != "system"]
    greetings = list(takewhile(lambda position: messages[position].role == "assistant", talk))
    if not greetings:
        return
    try:
        loaded.chat_format.prompt([message for at, message in enumerate(messages) if at not in greetings], tools)
    except Exception:  # noqa: BLE001 - then there is another reason, and the first error has it
        return
    raise InputError(
        f"message {greetings[0] + 1} is the assistant's, before any question, and this model's chat template takes no"
        " greeting; leave it out, or say in the system message how the assistant has greeted"
    ) from error


def room_for_reply(loaded: LoadedModel, prompt_tokens: int) -> int:
    """Returns how many tokens a reply can have at most. Raises InputError if there is none."""
    context = longest_of(loaded.model.config)
    if context is None:
        return MOST_NEW_TOKENS
    if prompt_tokens >= context:
        raise InputError(
            f"the conversation has {prompt_tokens:,} tokens, and the model's context {context:,}: there is no room for an"
            " answer; make it shorter, or begin another one"
        )
    return context - prompt_tokens


def _inputs(
    loaded: LoadedModel,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    tools: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """Returns the arguments of `generate`. Raises InputError for impossible options, and a prompt that fills the context."""
    check_options(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    clear_generation_config(loaded.model)
    token_ids = prompt_of(loaded, messages, tools)
    max_new_tokens = min(max_new_tokens, room_for_reply(loaded, len(token_ids)))
    input_ids_1T = torch.tensor([token_ids], device=loaded.device)
    config = generation_config(loaded.chat_format, max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p)
    return {"input_ids": input_ids_1T, "attention_mask": torch.ones_like(input_ids_1T), "generation_config": config}
