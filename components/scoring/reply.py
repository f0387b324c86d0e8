"""What a model said in answer to a conversation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import GenerationConfig, PreTrainedModel

from components.conversations.chat_formats.chat_format import ChatFormat
from components.conversations.messages import Message
from components.conversations.openai_messages import openai_call

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a model said.

    `stopped`: the model ended the reply itself, with its stop token; otherwise it was cut off at max_new_tokens. `text` is
    the whole reply, for people; in `message` the tool calls are separate.
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


def reply_of(chat_format: ChatFormat, said: Sequence[int], *, prompt_tokens: int, stopped: bool) -> Reply:
    """Returns the reply that these tokens are, without the stop token."""
    return Reply(
        text=chat_format.decode(said),
        message=answer_of(chat_format, said),
        prompt_tokens=prompt_tokens,
        new_tokens=len(said) + stopped,  # the stop token is one of them
        stopped=stopped,
    )


def answer_of(chat_format: ChatFormat, said: Sequence[int]) -> Message:
    """Returns what was said as a message. What looks like tool calls and is none is words: a model may say anything."""
    try:
        message = chat_format.message(said)
        if all(isinstance(part, str) for call in message.tool_calls for part in openai_call(call)):
            return message
    except Exception as error:  # noqa: BLE001 - no answer may end a conversation
        log.info("an answer cannot be taken apart: %r", error)
    return Message(role="assistant", content=chat_format.decode(said))


def until_stop(token_ids: list[int], chat_format: ChatFormat) -> list[int]:
    """Returns the tokens before the first stop token."""
    for position, token in enumerate(token_ids):
        if token in chat_format.stop_token_ids:
            return token_ids[:position]
    return token_ids


def generation_config(
    chat_format: ChatFormat, *, max_new_tokens: int, temperature: float = 0.0, top_p: float = 1.0
) -> GenerationConfig:
    """Returns how to generate: the same for every model, so that what two models say can be compared."""
    sampling = {"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        eos_token_id=list(chat_format.stop_token_ids),
        pad_token_id=chat_format.pad_token_id,
        use_cache=True,
        **sampling,
    )


def clear_generation_config(model: PreTrainedModel) -> None:
    """Removes what the model's generation_config.json says: transformers fills a GenerationConfig's gaps from it.

    It is not put back, because another thread may be about to begin a reply with the same model.
    """
    model.generation_config = GenerationConfig()
