"""What can be said of conversations without a chat format: counts, roles and lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from components.conversations.messages import Conversation


def describe_conversations(conversations: Sequence[Conversation]) -> str:
    """Returns one line for people."""
    messages = [message for conversation in conversations for message in conversation.messages]
    roles = Counter(message.role for message in messages)
    turns = sorted(len(conversation.messages) for conversation in conversations)
    letters = sorted(sum(len(message.content) for message in conversation.messages) for conversation in conversations)
    counted = ", ".join(f"{count:,} {role}" for role, count in roles.most_common())
    return (
        f"what the data has: {len(conversations):,} conversations of {_range(turns)} messages ({counted}), with"
        f" {_range(letters)} letters each"
    )


def _range(ordered: Sequence[int]) -> str:
    """Returns `2 to 14, mostly 6` of numbers in order."""
    low, middle, high = ordered[0], ordered[len(ordered) // 2], ordered[-1]
    return f"{low:,}" if low == high else f"{low:,} to {high:,} (median {middle:,})"
