"""Replies as OpenAI's API has them: whole, and in chunks. Plain dicts, which become JSON."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.messages import Message
from components.conversations.openai_messages import openai_call
from components.inference.token_choice import TokenChance
from components.scoring.reply import Reply


@dataclass(frozen=True)
class ResponseHead:
    """What every part of a response says of it."""

    model: str
    kind: str = "chat.completion"
    prefix: str = "chatcmpl"
    id: str = field(default="")
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", f"{self.prefix}-{secrets.token_hex(12)}")

    def whole(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._facts(self.kind), "choices": list(choices), "usage": usage}

    def chunk(self, choices: Sequence[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """`usage` is in the last chunk only, which has no choices."""
        kind = f"{self.kind}.chunk" if self.kind == "chat.completion" else self.kind
        return {**self._facts(kind), "choices": list(choices), **({} if usage is None else {"usage": usage})}

    def _facts(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def chat_choice(index: int, reply: Reply, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "refusal": None, **_content_of(reply.message)},
        "finish_reason": reply.finish_reason,
        "logprobs": logprobs,
    }


def first_chunk(index: int) -> dict[str, Any]:
    return _chunk_choice(index, {"role": "assistant", "content": ""})


def piece_chunk(index: int, piece: str, logprobs: dict[str, Any] | None) -> dict[str, Any]:
    return {**_chunk_choice(index, {"content": piece}), "logprobs": logprobs}


def last_chunk(index: int, reply: Reply) -> dict[str, Any]:
    """Has reasoning and tool calls, each whole."""
    said = _content_of(reply.message)
    delta: dict[str, Any] = {}
    if "reasoning_content" in said:
        delta["reasoning_content"] = said["reasoning_content"]
    if "tool_calls" in said:
        delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(said["tool_calls"])]
    return {**_chunk_choice(index, delta), "finish_reason": reply.finish_reason}


def text_choice(
    index: int, text: str, finish_reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "text": text, "finish_reason": finish_reason, "logprobs": logprobs}


def usage_of(replies: Sequence[Reply], prompts: Sequence[int]) -> dict[str, Any]:
    """Args: prompts: the tokens of each prompt; several replies to one prompt have read it once."""
    read, made = sum(prompts), sum(reply.new_tokens for reply in replies)
    return {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}


def chat_logprobs(chances: Sequence[TokenChance], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "content": [
            {
                **_token_chance(chance.token, chance.logprob, tokenizer),
                "top_logprobs": [_token_chance(*pair, tokenizer) for pair in chance.alternatives],
            }
            for chance in chances
        ],
        "refusal": None,
    }


def text_logprobs(chances: Sequence[TokenChance], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    def word(token: int) -> str:
        return str(tokenizer.decode([token]))

    offsets, at = [], 0
    for chance in chances:
        offsets.append(at)
        at += len(word(chance.token))
    return {
        "tokens": [word(chance.token) for chance in chances],
        "token_logprobs": [chance.logprob for chance in chances],
        "top_logprobs": [
            {word(token): logprob for token, logprob in (*chance.alternatives, (chance.token, chance.logprob))}
            for chance in chances
        ],
        "text_offset": offsets,
    }


def error_body(message: str, kind: str = "invalid_request_error", code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def event(part: dict[str, Any]) -> bytes:
    """Returns one event of a stream."""
    return f"data: {json.dumps(part, ensure_ascii=False)}\n\n".encode()


LAST_EVENT = b"data: [DONE]\n\n"


def _chunk_choice(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": None, "logprobs": None}


def _content_of(message: Message) -> dict[str, Any]:
    calls = [
        {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for name, arguments in map(openai_call, message.tool_calls)
    ]
    return {
        "content": message.content or (None if calls else ""),
        **({"tool_calls": calls} if calls else {}),
        **({"reasoning_content": message.reasoning_content} if message.reasoning_content else {}),
    }


def _token_chance(token: int, logprob: float, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    text = str(tokenizer.decode([token]))
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}
