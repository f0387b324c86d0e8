"""Talking to a model, greedily or by sampling."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import TextIteratorStreamer

from components.conversations.messages import Message
from components.models.trained import LoadedModel

STREAM_SECONDS = 300.0


def generate_reply(
    loaded: LoadedModel,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    tools: Sequence[dict[str, Any]] = (),
) -> str:
    """The assistant's next message. Temperature 0 is greedy, so the same question has the same answer."""
    input_ids = torch.tensor([loaded.chat_format.prompt(messages, tools)], device=loaded.device)
    output = loaded.model.generate(input_ids=input_ids, **_settings(loaded, input_ids, max_new_tokens, temperature))
    return loaded.chat_format.decode(_said(output[0, input_ids.shape[1] :].tolist(), loaded))


def stream_reply(
    loaded: LoadedModel,
    messages: Sequence[Message],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    tools: Sequence[dict[str, Any]] = (),
) -> Iterator[str]:
    """The same, piece by piece as it is made; never half a character."""
    input_ids = torch.tensor([loaded.chat_format.prompt(messages, tools)], device=loaded.device)
    streamer = TextIteratorStreamer(
        loaded.tokenizer, skip_prompt=True, timeout=STREAM_SECONDS, skip_special_tokens=True
    )
    settings = _settings(loaded, input_ids, max_new_tokens, temperature)
    worker = threading.Thread(
        target=loaded.model.generate, kwargs={"input_ids": input_ids, "streamer": streamer, **settings}, daemon=True
    )
    worker.start()
    yield from (piece for piece in streamer if piece)
    worker.join()


def _settings(loaded: LoadedModel, input_ids: torch.Tensor, max_new_tokens: int, temperature: float) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "attention_mask": torch.ones_like(input_ids),
        "max_new_tokens": max_new_tokens,
        "do_sample": temperature > 0,
        "eos_token_id": list(loaded.chat_format.stop_token_ids),
        "pad_token_id": loaded.chat_format.pad_token_id,
        "use_cache": True,
    }
    return settings | {"temperature": temperature} if temperature > 0 else settings


def _said(token_ids: list[int], loaded: LoadedModel) -> list[int]:
    """Up to the stop token."""
    for position, token in enumerate(token_ids):
        if token in loaded.chat_format.stop_token_ids:
            return token_ids[:position]
    return token_ids
