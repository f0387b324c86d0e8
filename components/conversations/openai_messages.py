"""Converts messages of OpenAI's API (plain dicts) to Message, and tool calls back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from components.conversations.canonical_tools import canonical_call
from components.conversations.messages import ROLES, Message, Role
from components.errors import InputError

# OpenAI's newer name of the system role, and its older name of a tool's result.
ROLE_ALIASES = {"developer": "system", "function": "tool"}


def messages_of(raw: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Converts all messages. Raises InputError naming the first message that cannot be read."""
    return [message_of(number, message) for number, message in enumerate(raw, start=1)]


def message_of(number: int, raw: Mapping[str, Any]) -> Message:
    """Converts the message at position `number` of a conversation. Raises InputError if it cannot be read."""
    role = ROLE_ALIASES.get(raw["role"], raw["role"])
    if role not in ROLES:
        known = ", ".join((*ROLES, *ROLE_ALIASES))
        raise InputError(f"message {number} is from {raw['role']!r}; roles are {known}")
    return Message(
        role=cast(Role, role),
        content=_text(number, raw.get("content") or raw.get("refusal")),
        tool_calls=tuple(_call(number, role, call) for call in raw.get("tool_calls") or ()),
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
        reasoning_content=raw.get("reasoning_content") or "",
    )


def openai_call(call: dict[str, Any]) -> tuple[str, str]:
    """Returns a call's name, and its arguments as JSON text, as the API has them."""
    function = canonical_call(call)["function"]
    arguments = function["arguments"]
    return function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _text(number: int, content: Any) -> str:
    """Joins the texts of parts. No content, as beside tool calls, is the empty text."""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str | None):
        raise InputError(f"message {number}: content must be text")
    return content or ""


def _call(number: int, role: str, call: Any) -> dict[str, Any]:
    if role != "assistant":
        raise InputError(f'message {number} from "{role}" has tool_calls; only an assistant calls tools')
    try:
        return canonical_call(call)
    except (AttributeError, KeyError, TypeError):
        raise InputError(
            f'message {number} has a tool call that is no {{"function": {{"name", "arguments"}}}}'
        ) from None
