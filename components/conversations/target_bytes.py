"""How many bytes an assistant is scored on: a measure of words that no tokenizer and no chat format changes.

Losses per token of two tokenizers are of two kinds. The same words have the same bytes for both, so bits per byte compare:
nats summed over the scored tokens / ln 2 / bytes. The bytes are UTF-8's, of the messages that are scored:

    content             without blanks around it
    reasoning           if it is scored; also the <think>...</think> at the head of a content, without the tags
    tool calls          each as JSON, {"name": ..., "arguments": ...}, in canonical_call's form

The stop, and what a template writes around the words, have no bytes. Their loss counts: it is part of what a model must
say. A loss weight changes the nats of a message, not its bytes, as it does not change its number of targets.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from components.conversations.canonical_tools import canonical_call
from components.conversations.messages import Conversation, Message

BITS_PER_BYTE = "bits_per_byte"  # the metric's name
THOUGHT_AT_HEAD = re.compile(r"\s*<think>(?P<thought>.*?)</think>", re.DOTALL)


def target_bytes(conversation: Conversation, *, turns: int | None = None, thoughts: bool = True) -> int:
    """Returns the number of bytes of what is scored.

    Args:
        turns: only the first so many scored turns, where a truncation has cut the others.
        thoughts: whether an assistant's reasoning is scored.
    """
    scored = [message for message in conversation.messages if message.role == "assistant" and message.loss_weight > 0]
    return sum(_bytes_of(message, thoughts) for message in scored[:turns])


def bits_per_byte(nats: float, num_bytes: int) -> float | None:
    """Returns a loss, summed over targets, in bits per byte; None where no byte is scored, or nobody counted them."""
    return to_bits(nats) / num_bytes if num_bytes else None


def to_bits(nats: float) -> float:
    return nats / math.log(2)


def _bytes_of(message: Message, thoughts: bool) -> int:
    thought, content = message.reasoning_content, message.content
    if found := THOUGHT_AT_HEAD.match(content):
        thought, content = found["thought"], content[found.end() :]
    said = [content, *map(_written, message.tool_calls), *([thought] if thoughts else [])]
    return sum(len(text.strip().encode()) for text in said)


def _written(call: dict[str, Any]) -> str:
    function = canonical_call(call)["function"]
    return json.dumps({"name": function["name"], "arguments": function["arguments"]}, ensure_ascii=False)
