"""On which side of the split a conversation stands: decided by what is said in it, for ever, whatever else there is."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence

from components.conversations.messages import Conversation, Message

KEY_LENGTH = 32  # hexadecimal digits: 128 bits
SCALES = tuple(10.0**digits for digits in range(2, 16))  # fractions are named with two digits, or more where these fail


def keys_of(conversation: Conversation) -> tuple[str, ...]:
    """Hashes by which a conversation is known again: of what is said in it and, where it has one, of its group.

    Said is what user, assistant and tools say, calls included. Who trained on these words knows them whatever the system
    message, the tools on offer, the ids of calls, the reasoning before a reply and the weights of the loss were.
    """
    said = [_content_of(message) for message in conversation.messages if message.role != "system"]
    words = _hash("words", json.dumps(said, sort_keys=True))
    return (words,) if conversation.group is None else (words, _hash("group", conversation.group))


def mark_of(keys: Sequence[str], seed: int) -> float:
    """From 0 to below 1, evenly over conversations: below data.eval_fraction one is held out. A group has one mark."""
    return int(_hash(f"split {seed}", keys[-1])[:13], 16) / 16**13


def fraction_that_holds_out(count: int, marks: Iterable[float]) -> float | None:
    """The shortest fraction that holds out at least `count` of those with these marks and leaves some; None if none does."""
    ordered = sorted(marks)
    if not 0 < count < len(ordered) or ordered[count - 1] == ordered[-1]:
        return None
    for scale in SCALES:
        fraction = (math.floor(ordered[count - 1] * scale) + 1) / scale
        if ordered[count - 1] < fraction <= ordered[-1] and fraction < 1:
            return fraction
    return None


def fraction_that_leaves(count: int, marks: Iterable[float]) -> float | None:
    """The shortest fraction that leaves at least `count` of those with these marks and holds out some."""
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
