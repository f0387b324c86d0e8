"""Conversations as text, before they are tokenized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
# The names of Message.reasoning_content in data files and chat templates.
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. Only an assistant's tokens are scored, each with `loss_weight` (`loss` in data files); 0 trains nothing.

    `reasoning_content` is the assistant's reasoning before its content; chat templates of reasoning models show it.
    """

    role: Role
    content: str
    loss_weight: float = 1.0
    tool_calls: tuple[dict[str, Any], ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning_content: str = ""


MESSAGE_FIELDS = tuple(field.name for field in fields(Message))


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order. `source` says where it was read, for errors: `file.jsonl, line 41`.

    Conversations of one `group` (of one user, of one document) stay on one side of the split: trained on, or held out.
    `expect` is what its last answer should hold: words, or a regular expression as /.../ (expected.py).
    `tag` is the label that data.tag names; losses are shown by it.
    """

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    source: str = ""
    group: str | None = None
    expect: str | None = None
    tag: str | None = None


def prepend_system(messages: Sequence[Message]) -> list[Message]:
    """Writes the text of system messages at the head of the next question, for templates without that role.

    A system message that no question follows stays.
    """
    last_question = max((number for number, message in enumerate(messages) if message.role == "user"), default=-1)
    moved: list[Message] = []
    texts: list[str] = []
    for number, message in enumerate(messages):
        if message.role == "system" and number < last_question:
            texts.append(message.content.rstrip())
        elif message.role == "user":
            moved.append(replace(message, content="\n\n".join([*filter(str.strip, texts), message.content])))
            texts = []
        else:
            moved.append(message)
    return moved


def hidden_reasoning_problem(chat_format: str) -> str:
    """Returns the problem of a message whose reasoning the chat format would drop."""
    return (
        f"chat_format {chat_format} does not show its reasoning_content; take it out, or write it into the content as the"
        " model writes it"
    )
