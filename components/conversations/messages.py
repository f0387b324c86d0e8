"""What a conversation is, before any tokenizer has seen it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. `loss` is the weight of an assistant's tokens (0 trains nothing); other roles are never scored.

    `reasoning_content` is what an assistant thought before its content; chat templates of reasoning models show it.
    """

    role: Role
    content: str
    loss: float = 1.0
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order. `source` is where it was read, for errors: `file.jsonl:41`.

    Conversations of one `group` (a user's, a document's) belong together: all are trained on, or all held out.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    source: str = ""
    group: str | None = None


def reasoning_is_not_shown(chat_format: str) -> str:
    """What a chat format says of reasoning that would be lost in it."""
    return (
        f"chat_format {chat_format} does not show its reasoning_content; take it out, or write it into the content as the"
        " model writes it"
    )
