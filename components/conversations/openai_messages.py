"""Converts messages of OpenAI's API (plain dicts) to Message, and tool calls back.

Roles, reasoning, parts and calls are understood as in data files. Other keys are not read: replies of servers have many.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, cast

from components.conversations.canonical_tools import canonical_call
from components.conversations.messages import ROLES, Message, Role
from components.conversations.readers.message_forms import in_one_form, reasoning_in, reasoning_problem
from components.conversations.readers.message_text import content_text
from components.conversations.readers.raw_message import RawMessage
from components.conversations.readers.tool_calls import CallError, legacy_calls_of
from components.conversations.readers.unknown_keys import is_absent
from components.conversations.roles import ROLES_ARE
from components.errors import InputError


def messages_of(given: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    """Converts all that are not messages yet. Raises InputError naming the first that cannot be read."""
    read: list[Message] = []
    for converted, run in groupby(enumerate(given, start=1), key=lambda each: isinstance(each[1], Message)):
        if converted:
            read += [cast(Message, message) for _, message in run]
        else:
            raw = [RawMessage(location=f"message {number}", keys=dict(cast(Any, keys))) for number, keys in run]
            read += map(_message_of, in_one_form(raw))
    return read


def openai_call(call: dict[str, Any]) -> tuple[str, str]:
    """Returns a call's name, and its arguments as JSON text, as the API has them."""
    function = canonical_call(call)["function"]
    arguments = function["arguments"]
    return function["name"], arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def _message_of(raw: RawMessage) -> Message:
    role, keys = raw.role, raw.keys
    if role not in ROLES:
        raise InputError(f"{raw.location} is from {role!r}; {ROLES_ARE}")
    return Message(
        role=cast(Role, role),
        content=_text(raw),
        tool_calls=tuple(_calls(raw)),
        tool_call_id=keys.get("tool_call_id"),
        name=keys.get("name"),
        reasoning_content=_reasoning(raw) if role == "assistant" else "",
    )


def _text(raw: RawMessage) -> str:
    """Returns the text of a message. No content, as beside tool calls, is the empty text."""
    content = raw.keys.get("content")
    if content in (None, "") or (content == [] and raw.role != "tool"):
        content = raw.keys.get("refusal") or ""
    text, problems, _ = content_text(content, raw.role)
    if problems:
        raise InputError(f"{raw.location} {problems[0]}")
    return text


def _reasoning(raw: RawMessage) -> str:
    given = reasoning_in(raw.keys)
    if problem := reasoning_problem(given):
        raise InputError(f"{raw.location} {problem}")
    return given[0] if given else ""


def _calls(raw: RawMessage) -> list[dict[str, Any]]:
    if not raw.has_calls:
        return []
    if raw.role != "assistant":
        raise InputError(f'{raw.location} from "{raw.role}" has tool_calls; only an assistant calls tools')
    older = raw.keys.get("function_call")
    try:
        given = raw.keys["tool_calls"] if is_absent(older) else legacy_calls_of(older)
        return [canonical_call(call) for call in given]
    except CallError as error:
        raise InputError(f"{raw.location} {error}") from None
    except (AttributeError, KeyError, TypeError):
        raise InputError(f'{raw.location} has a tool call that is no {{"function": {{"name", "arguments"}}}}') from None
