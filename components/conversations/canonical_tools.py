"""One canonical form of tool calls and tool schemas.

Prompts are made from this form only, in training and in use. So the same conversation has the same tokens whether it came
from a file, from OpenAI's API (arguments as JSON text) or through MLflow's types (keys in another order).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from components.conversations.messages import Message

TOOL_KEY_ORDER = ("type", "function")
FUNCTION_KEY_ORDER = ("name", "description", "parameters", "strict")
SCHEMA_KEY_ORDER = ("type", "description", "enum", "items", "properties", "required", "additionalProperties")
NO_PARAMETERS = {"type": "object", "properties": {}}  # transformers describes a function without parameters like this


def canonicalize(
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
    """Returns {"id"?, "type", "function": {"name", "arguments"}} for a call with or without that envelope."""
    function = call.get("function", call)
    identity = {"id": call["id"]} if call.get("id") is not None else {}
    given = function.get("arguments")
    arguments = _arguments(function.get("parameters") if given is None else given)
    return {**identity, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def canonical_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Returns a function's schema in OpenAI's envelope and key order, in which defaults look alike.

    Names of parameters and keys that are not OpenAI's keep their order. Other kinds of tools are returned unchanged.
    """
    flat = {key: value for key, value in tool.items() if key != "type"}
    envelope, function = (tool, tool["function"]) if "function" in tool else ({}, flat)
    if tool.get("type") not in (None, "function") or not (isinstance(function, dict) and "name" in function):
        return tool
    parameters = function.get("parameters") or {}
    if isinstance(parameters, dict):
        given = {key: value for key, value in parameters.items() if value is not None}
        function = {**function, "parameters": _schema(NO_PARAMETERS | given)}
    described = _order_keys(function, FUNCTION_KEY_ORDER)
    if described.get("strict") is False:
        del described["strict"]
    return _order_keys({**envelope, "type": "function", "function": described}, TOOL_KEY_ORDER)


def _arguments(given: Any) -> Any:
    """Parses arguments given as JSON text; none are {}. A text that is not a JSON object is returned unchanged."""
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
    ordered = _order_keys(schema, SCHEMA_KEY_ORDER)
    for key in ("items", "additionalProperties"):
        if key in ordered:
            ordered[key] = _schema(ordered[key])
    if isinstance(properties := ordered.get("properties"), dict):
        ordered["properties"] = {name: _schema(item) for name, item in properties.items()}
    return ordered


def _order_keys(mapping: dict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Puts these keys first, in this order and without nulls; then all others, unchanged."""
    first = {key: mapping[key] for key in keys if mapping.get(key) is not None}
    return first | {key: value for key, value in mapping.items() if key not in keys}
