"""Talking to a model, greedily or by sampling."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from components.conversations.messages import Message
from components.models.load_trained import LoadedModel
from components.training.precision import computing

UNFINISHED = "\ufffd"  # what half a character decodes to


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`stopped`: by the model itself, with its stop token; otherwise it was cut off at max_new_tokens.

    `text` is all that was said, for people; `message` has tool calls apart.
    """

    text: str
    message: Message
    prompt_tokens: int
    new_tokens: int
    stopped: bool

    @property
    def finish_reason(self) -> Literal["stop", "length", "tool_calls"]:
        """As OpenAI's API has it."""
        if not self.stopped:
            return "length"
        return "tool_calls" if self.message.tool_calls else "stop"


def reply_to(
    loaded: LoadedModel,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    tools: Sequence[dict[str, Any]] = (),
) -> Reply:
    """The assistant's next message.

    Args:
        temperature: 0 is greedy, so the same question has the same answer. Above 0 the next token is drawn from the whole
            distribution, by torch's global generator: nothing is cut off it but by `top_p`.
        top_p: draw from the likeliest tokens that together have this probability.
    """
    input_ids_1T = _prompt(loaded, messages, tools)
    settings = _settings(loaded, input_ids_1T, max_new_tokens, temperature, top_p)
    with computing(loaded.precision, loaded.device):
        output_1T = loaded.model.generate(input_ids=input_ids_1T, **settings)
    prompt_tokens = input_ids_1T.shape[1]
    made = output_1T[0, prompt_tokens:].tolist()
    said = _said(made, loaded)
    return _reply(loaded, said, prompt_tokens=prompt_tokens, stopped=len(said) < len(made))


def _reply(loaded: LoadedModel, said: list[int], *, prompt_tokens: int, stopped: bool) -> Reply:
    return Reply(
        text=loaded.chat_format.decode(said),
        message=loaded.chat_format.message(said),
        prompt_tokens=prompt_tokens,
        new_tokens=len(said) + stopped,  # the stop token is one of them
        stopped=stopped,
    )


def generate_reply(
    loaded: LoadedModel,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """The text of reply_to."""
    return reply_to(loaded, messages, max_new_tokens=max_new_tokens, temperature=temperature, tools=tools).text


def stream_reply(
    loaded: LoadedModel,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    tools: Sequence[dict[str, Any]] = (),
    only_words: bool = False,
) -> Generator[str, None, Reply]:
    """The text of reply_to, piece by piece as it is made, never half a character; what it returns is the whole reply.

    Who stops listening stops the model.

    Args:
        only_words: the pieces make up the message's content; what may be a tool call is held back until it is none.
    """
    input_ids_1T = _prompt(loaded, messages, tools)
    settings = _settings(loaded, input_ids_1T, max_new_tokens, temperature, top_p)
    mouth = _Mouth()
    settings |= {"input_ids": input_ids_1T, "streamer": mouth, "stopping_criteria": StoppingCriteriaList([mouth.hush])}
    speaking = threading.Thread(target=mouth.speak, args=(loaded, settings), name="generate", daemon=True)
    speaking.start()
    try:
        said, stopped = yield from _pieces(mouth.tokens(), loaded, only_words=only_words)
        return _reply(loaded, said, prompt_tokens=input_ids_1T.shape[1], stopped=stopped)
    finally:
        mouth.hush.now.set()
        speaking.join()


def _pieces(
    tokens: Iterator[int], loaded: LoadedModel, *, only_words: bool = False
) -> Generator[str, None, tuple[list[int], bool]]:
    """Returns the tokens without the stop, and whether there was one."""
    chat_format = loaded.chat_format
    read = chat_format.words if only_words else chat_format.decode
    token_ids: list[int] = []
    shown = text = ""
    stopped = False
    for token in tokens:
        if stopped := token in chat_format.stop_token_ids:
            break
        token_ids.append(token)
        text = read(token_ids)
        if text.startswith(shown) and text != shown and not text.endswith(UNFINISHED):
            yield text[len(shown) :]
            shown = text
    text = chat_format.message(token_ids).content if only_words else text
    if text != shown:
        yield text[len(shown) :]
    return token_ids, stopped


class _Hush(StoppingCriteria):  # type: ignore[misc]
    def __init__(self) -> None:
        self.now = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(input_ids),), self.now.is_set(), device=input_ids.device)


class _Mouth(BaseStreamer):  # type: ignore[misc]
    """Speaks in one thread and is heard in another: `tokens` gives what `generate` makes, and raises what it raises."""

    def __init__(self) -> None:
        self.hush = _Hush()
        self._said: queue.Queue[list[int] | BaseException | None] = queue.Queue()
        self._prompt_is_over = False

    def speak(self, loaded: LoadedModel, settings: dict[str, Any]) -> None:
        try:
            with computing(loaded.precision, loaded.device):
                loaded.model.generate(**settings)
        except BaseException as error:  # noqa: BLE001 - it is raised where the tokens are waited for
            self._said.put(error)
        else:
            self._said.put(None)

    def put(self, value: Tensor) -> None:
        if self._prompt_is_over:
            self._said.put(value.flatten().tolist())
        self._prompt_is_over = True  # the first thing a streamer is given is the prompt

    def end(self) -> None:
        """`speak` knows better when it is over."""

    def tokens(self) -> Iterator[int]:
        while (said := self._said.get()) is not None:
            if isinstance(said, BaseException):
                raise said
            yield from said


def _prompt(loaded: LoadedModel, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Tensor:
    """Raises ValueError for a token that the model has no row for."""
    token_ids = loaded.chat_format.prompt(messages, tools)
    loaded.check_token_ids(dict.fromkeys(token_ids, "is in the prompt"))
    return torch.tensor([token_ids], device=loaded.device)


def _settings(
    loaded: LoadedModel, input_ids_1T: Tensor, max_new_tokens: int, temperature: float, top_p: float
) -> dict[str, Any]:
    """What `generate` is given. Candidate, incumbent and base are compared by what they say, and must say it by one rule."""
    _forget_own_settings(loaded.model)
    drawn = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=list(loaded.chat_format.stop_token_ids),
        pad_token_id=loaded.chat_format.pad_token_id,
        use_cache=True,
        **drawn,
    )
    return {"attention_mask": torch.ones_like(input_ids_1T), "generation_config": config}


def _forget_own_settings(model: Any) -> None:
    """For good: transformers fills what a GenerationConfig leaves open from the model's generation_config.json.

    Put back, they would reach a reply that another thread is about to begin.
    """
    model.generation_config = GenerationConfig()


def _said(token_ids: list[int], loaded: LoadedModel) -> list[int]:
    """Up to the stop token."""
    for position, token in enumerate(token_ids):
        if token in loaded.chat_format.stop_token_ids:
            return token_ids[:position]
    return token_ids
