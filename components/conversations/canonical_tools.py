"""One shape for what people write in several: tool calls and the schemas of tools.

A prompt is made from this shape alone, in training and in use, so that the same conversation has the same tokens whether it
came from a file, from OpenAI's API (arguments as a JSON text) or through MLflow's types (keys in another order).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from components.conversations.messages import Message

TOOL_KEYS = ("type", "function")
FUNCTION_KEYS = ("name", "description", "parameters", "strict")
SCHEMA_KEYS = ("type", "description", "enum", "items", "properties", "required", "additionalProperties")
NO_PARAMETERS = {"type": "object", "properties": {}}  # as transformers describes a function without any


def canonical(
    messages: Sequence[Message], tools: Sequence[dict[str, Any]]
) -> tuple[list[Message], list[dict[str, Any]]]:
    called = [
        replace(message, tool_calls=tuple(canonical_call(call) for call in message.tool_calls))
        if message.tool_calls
        else message
        for message in messages
    ]
    return called, [canonical_tool(tool) for tool in tools]


def canonical_call(call: dict[str, Any]) -> dict[str, Any]:
    """{"id"?, "type", "function": {"name", "arguments"}}, whether or not it came in an envelope."""
    function = call.get("function", call)
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    arguments = _arguments(function.get("arguments"))
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def canonical_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """A function's schema in OpenAI's envelope and order; what is left out means what it says by default (no parameters,
    not strict). Names of parameters stay in their order, as does every key that is not OpenAI's. Other kinds of tools stay
    as they are.
    """
    flat = {key: value for key, value in tool.items() if key != "type"}
    envelope, function = (tool, tool["function"]) if "function" in tool else ({}, flat)
    if tool.get("type") not in (None, "function") or not (isinstance(function, dict) and "name" in function):
        return tool
    parameters = function.get("parameters") or {}
    if isinstance(parameters, dict):
        given = {key: value for key, value in parameters.items() if value is not None}
        function = {**function, "parameters": _schema(NO_PARAMETERS | given)}
    described = _ordered(function, FUNCTION_KEYS)
    if described.get("strict") is False:
        del described["strict"]
    return _ordered({**envelope, "type": "function", "function": described}, TOOL_KEYS)


def _arguments(given: Any) -> Any:
    """The object that a JSON text says; none at all are {}. A text that is no JSON object stands as it is."""
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    if not isinstance(given, str):
        return given
    try:
        value = json.loads(given)
    except (json.JSONDecodeError, RecursionError):
        return given
    return value if isinstance(value, dict) else given


def _schema(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    ordered = _ordered(schema, SCHEMA_KEYS)
    for key in ("items", "additionalProperties"):
        if key in ordered:
            ordered[key] = _schema(ordered[key])
    if isinstance(properties := ordered.get("properties"), dict):
        ordered["properties"] = {name: _schema(item) for name, item in properties.items()}
    return ordered


def _ordered(mapping: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """These keys first, in this order and without nulls; then all others as they are."""
    first = {key: mapping[key] for key in keys if mapping.get(key) is not None}
    return first | {key: value for key, value in mapping.items() if key not in keys}
