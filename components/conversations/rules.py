"""What a conversation must be to train on. Every broken rule is reported, not only the first."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from typing import Any, cast

from components.conversations.messages import Conversation, Message, Role

ROLES = ("system", "user", "assistant", "tool")
UNKNOWN = "unknown"


def build(raw_messages: list[dict[str, Any]], raw_tools: Any, source: str) -> tuple[Conversation | None, list[str]]:
    """The conversation, or None and all that is wrong with it."""
    problems = [*_broken_rules(raw_messages), *_broken_tools(raw_tools)]
    if problems:
        return None, problems
    messages = tuple(_message(raw) for raw in raw_messages)
    if not any(message.role == "assistant" and message.loss > 0 for message in messages):
        return None, ["no assistant message has a loss above 0, so there is nothing to train on"]
    return Conversation(messages=messages, tools=tuple(raw_tools or ()), source=source), []


def _broken_rules(raw_messages: list[dict[str, Any]]) -> Iterator[str]:
    if not raw_messages:
        yield "there are no messages"
        return
    before: str | None = None
    called = False
    for number, raw in enumerate(raw_messages, start=1):
        role = raw.get("role")
        yield from (f"message {number} {text}" for text in _broken_message(raw))
        if role not in ROLES:
            before, called = UNKNOWN, True  # whatever follows may be right
            continue
        if text := _out_of_turn(role, before, called):
            yield f"message {number} {text}"
        if role != "system" or before is None:  # a misplaced one changes nobody's turn
            before, called = role, bool(raw.get("tool_calls")) or (role == "tool" and called)
    if before in ("user", "tool"):
        yield f'message {len(raw_messages)}, the last, is from "{before}"; the last word must be the assistant\'s'


def _out_of_turn(role: str, before: str | None, called: bool) -> str | None:
    if role == "system":
        return None if before is None else 'is from "system"; a system message can only be the first'
    if role == "user":
        if before == "user":
            return 'is from "user" after "user"; roles must alternate'
        return (
            'is from "user" after tool calls; their results (role "tool") must come first'
            if called and before == "assistant"
            else None
        )
    if role == "assistant":
        if before in (None, "system"):
            return 'is from "assistant"; a conversation must begin with the user'
        return 'is from "assistant" after "assistant"; roles must alternate' if before == "assistant" else None
    return None if called else 'is from "tool", but no tool was called before it'


def _broken_message(raw: dict[str, Any]) -> Iterator[str]:
    role, content = raw.get("role"), raw.get("content")
    if role not in ROLES:
        yield f"has the role {role!r}; roles are {', '.join(ROLES)}"
    if content is None and raw.get("tool_calls"):
        content = ""
    if not isinstance(content, str):
        yield f"must have a text as content, not {type(content).__name__}"
    elif not content.strip() and not raw.get("tool_calls") and role != "tool":
        yield f'from "{role}" is empty'
    weight = raw.get("loss", raw.get("weight"))
    if weight is not None and not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
        yield f"has the loss weight {weight!r}; it must be a number, 0 or more"
    if not isinstance(raw.get("train"), bool | None):
        yield f"has train: {raw['train']!r}; it must be true or false"
    calls = raw.get("tool_calls")
    if calls and not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
        yield 'has tool_calls that are no list of {"function": {"name", "arguments"}}'
    elif calls and role != "assistant":
        yield f'from "{role}" has tool_calls; only an assistant calls tools'


def _broken_tools(raw_tools: Any) -> Iterator[str]:
    if raw_tools and not (isinstance(raw_tools, list) and all(isinstance(tool, dict) for tool in raw_tools)):
        yield '"tools" must be a list of objects'


def _message(raw: dict[str, Any]) -> Message:
    weight = raw.get("loss", raw.get("weight"))
    loss = 0.0 if raw.get("train") is False else 1.0 if weight is None else float(weight)
    return Message(
        role=cast(Role, raw["role"]),
        content=raw.get("content") or "",
        loss=loss,
        tool_calls=tuple(_call(call) for call in raw.get("tool_calls") or ()),
        tool_call_id=raw.get("tool_call_id"),
        name=raw.get("name"),
    )


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """One shape for all: OpenAI keeps arguments as a JSON text, chat templates want the object."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        with contextlib.suppress(json.JSONDecodeError):
            arguments = json.loads(arguments)
    identity = {"id": call["id"]} if "id" in call else {}
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}
