"""The layouts in which people keep conversations, each turned into messages. What is odd is left to rules.py to report.

A layout function takes a raw record and returns raw messages: dicts with role, content and whatever else OpenAI's have.
It raises LayoutError with what it missed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Raw = dict[str, Any]


class LayoutError(ValueError):
    """A record is not in the layout it is read in."""


def _openai(record: Any) -> tuple[list[Raw], Any]:
    """{"messages": [{"role", "content", ...}], "tools": [...]}; content may be a list of text parts."""
    messages = [_mapping(message, number) for number, message in enumerate(_field(record, "messages", list), start=1)]
    joined = [{**message, "content": _joined(message.get("content"))} for message in messages]
    return [_in_our_words(message) for message in joined], _tools(record, messages)


SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bing": "assistant",
    "chatgpt": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
    "function_call": "function_call",
}


def _sharegpt(record: Any) -> tuple[list[Raw], Any]:
    """{"conversations": [{"from": "human", "value": ...}], "system": ..., "tools": ...}"""
    messages: list[Raw] = []
    if record_system := _optional_text(record, "system"):
        messages.append({"role": "system", "content": record_system})
    for number, turn in enumerate(_field(record, "conversations", list), start=1):
        turn = _mapping(turn, number)
        speaker = turn.get("from", turn.get("role"))
        role = SHAREGPT_ROLES.get(str(speaker).lower(), speaker)
        content = turn.get("value", turn.get("content"))
        extras: Raw = {key: turn[key] for key in ("loss", "weight", "train", "metadata") if key in turn}
        if role == "function_call":
            messages.append({"role": "assistant", "content": "", "tool_calls": [_call(content, number)], **extras})
        else:
            messages.append(_in_our_words({"role": role, "content": content, **extras}))
    return messages, _tools(record, record["conversations"])


def _alpaca(record: Any) -> tuple[list[Raw], Any]:
    """{"instruction", "input", "output", "history": [[question, answer], ...], "system"}"""
    instruction, output = _field(record, "instruction", str), _field(record, "output", str)
    messages: list[Raw] = []
    if system := _optional_text(record, "system"):
        messages.append({"role": "system", "content": system})
    for number, pair in enumerate(record.get("history") or [], start=1):
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise LayoutError(f"history {number} must be a pair [question, answer], not {pair!r}")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    extra = _optional_text(record, "input")
    question = f"{instruction}\n{extra}" if extra else instruction
    return [*messages, {"role": "user", "content": question}, {"role": "assistant", "content": output}], None


def _nested(record: Any) -> tuple[list[Raw], Any]:
    """[{"role": "USER", "content"}, {"role": "ASSISTANT", "content"}, ...]"""
    if not isinstance(record, list):
        raise LayoutError(f"must be a list of messages, not {type(record).__name__}")
    messages = [_mapping(message, number) for number, message in enumerate(record, start=1)]
    lowered = [{**message, "role": str(message.get("role")).lower()} for message in messages]
    return [_in_our_words(message) for message in lowered], _tools({}, messages)


LAYOUTS: dict[str, Callable[[Any], tuple[list[Raw], Any]]] = {
    "messages": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "nested": _nested,
}


def detect_layout(record: Any) -> str | None:
    """The layout of a record by its keys, or None."""
    if isinstance(record, list):
        return "nested"
    if isinstance(record, dict):
        for key, layout in {"messages": "messages", "conversations": "sharegpt", "instruction": "alpaca"}.items():
            if key in record:
                return layout
    return None


def group_of(record: Any) -> str | None:
    """The record's `group`, a text or a whole number: conversations that belong together, e.g. those of one user."""
    group = record.get("group") if isinstance(record, dict) else None
    if group is None or (isinstance(group, str) and not group.strip()):
        return None
    if isinstance(group, bool) or not isinstance(group, str | int):
        raise LayoutError(f'"group" must be a text or a whole number, not {type(group).__name__}')
    return str(group)


def _field(record: Any, key: str, kind: type) -> Any:
    if not isinstance(record, dict):
        raise LayoutError(f"must be an object, not {type(record).__name__}")
    if key not in record:
        raise LayoutError(f'has no "{key}" (keys: {", ".join(map(str, record)) or "none"})')
    if not isinstance(record[key], kind):
        raise LayoutError(f'"{key}" must be a {kind.__name__}, not {type(record[key]).__name__}')
    return record[key]


def _mapping(message: Any, number: int) -> Raw:
    if not isinstance(message, dict):
        raise LayoutError(f"message {number} must be an object, not {type(message).__name__}")
    return message


def _optional_text(record: Any, key: str) -> str:
    value = record.get(key) or ""
    if not isinstance(value, str):
        raise LayoutError(f'"{key}" must be a string, not {type(value).__name__}')
    return value


def _joined(content: Any) -> Any:
    """The text of content parts; what is no list of them is left as it is."""
    is_parts = isinstance(content, list) and all(
        isinstance(part, dict) and isinstance(part.get("text"), str) for part in content
    )
    return "".join(part["text"] for part in content) if is_parts else content


def _in_our_words(message: Raw) -> Raw:
    """ChatGLM3's histories: an "observation" is a tool's result, "metadata" names the tool that an assistant's code calls."""
    if message.get("role") == "observation":
        return {**message, "role": "tool"}
    if message.get("role") == "assistant" and message.get("metadata"):
        call = {"name": str(message["metadata"]), "arguments": message.get("content")}
        return {**message, "content": "", "tool_calls": [{"type": "function", "function": call}]}
    return message


def _tools(record: Any, messages: list[Any]) -> Any:
    """Of the record, or (ChatGLM3) of its system message.

    Tables have no room for lists of unlike objects, so tools come as a JSON text, too.
    """
    first = messages[0] if messages and isinstance(messages[0], dict) else {}
    tools = record.get("tools") or (first.get("tools") if first.get("role") == "system" else None)
    return _parsed(tools, '"tools"') if isinstance(tools, str) and tools.strip() else tools


def _call(content: Any, number: int) -> Raw:
    call = _parsed(content, f"message {number}: the function call") if isinstance(content, str) else content
    if not (isinstance(call, dict) and "name" in call):
        raise LayoutError(f'message {number}: a function call is an object with "name" and "arguments"')
    return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise LayoutError(f"{what} is not JSON: {error.msg}") from None
