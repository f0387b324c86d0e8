"""Decides the side of the split of a conversation by a hash of its text, independently of all other conversations."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence

from components.conversations.messages import Conversation, Message

KEY_LENGTH = 32  # hexadecimal digits: 128 bits
SCALES = tuple(10.0**digits for digits in range(2, 16))  # fractions are suggested with two digits, or more if necessary


def keys_of(conversation: Conversation) -> tuple[str, ...]:
    """Returns the hashes that identify a conversation: of its text and, if it has one, of its group.

    The text is that of user, assistant and tools, calls included. A model that was trained on it knows it, regardless of
    the system message, the tools offered, the ids of calls, the reasoning and the loss weights.
    """
    content = [_content_of(message) for message in conversation.messages if message.role != "system"]
    text_key = _hash("words", json.dumps(content, sort_keys=True))
    return (text_key,) if conversation.group is None else (text_key, _hash("group", conversation.group))


def mark_of(keys: Sequence[str], seed: int) -> float:
    """Returns a number in [0, 1), evenly distributed, equal within a group; below data.eval_fraction it is held out."""
    return int(_hash(f"split {seed}", keys[-1])[:13], 16) / 16**13


def fraction_that_holds_out(count: int, marks: Iterable[float]) -> float | None:
    """Returns the shortest fraction that holds out at least `count` of these marks and leaves some; None if there is none."""
    ordered = sorted(marks)
    if not 0 < count < len(ordered) or ordered[count - 1] == ordered[-1]:
        return None
    for scale in SCALES:
        fraction = (math.floor(ordered[count - 1] * scale) + 1) / scale
        if ordered[count - 1] < fraction <= ordered[-1] and fraction < 1:
            return fraction
    return None


def fraction_that_leaves(count: int, marks: Iterable[float]) -> float | None:
    """Returns the shortest fraction that leaves at least `count` of these marks and holds out some; None if there is none."""
    ordered = sorted(marks)
    if not 0 < count < len(ordered) or ordered[-count] == ordered[0]:
        return None
    for scale in SCALES:
        fraction = math.floor(ordered[-count] * scale) / scale
        if ordered[0] < fraction <= ordered[-count]:
            return fraction
    return None


def _content_of(message: Message) -> list[object]:
    calls = [call.get("function", call) for call in message.tool_calls]
    return [message.role, message.content, [[call["name"], call.get("arguments")] for call in calls]]


def _hash(kind: str, text: str) -> str:
    return hashlib.sha256(f"{kind}\n{text}".encode()).hexdigest()[:KEY_LENGTH]
