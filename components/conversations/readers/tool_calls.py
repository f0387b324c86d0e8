"""Reads tool calls and tool schemas of records in OpenAI's form, with arguments as an object."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from components.conversations.canonical_tools import canonical_call
from components.conversations.readers.strict_json import ends_too_early, faults_of, json_error_reason, read_json
from components.conversations.readers.unknown_keys import UnknownKey, unknown_keys
from components.errors import InputError

CALL_KEYS = ("id", "type", "function")
ARGUMENT_KEYS = {"arguments", "parameters"}
CALL_FUNCTION_KEYS = ("name", "arguments", "parameters")


class CallError(InputError):
    """A call that cannot be read."""


def calls_of(raw: Any) -> tuple[list[dict[str, Any]], list[UnknownKey]]:
    """Returns the calls of a message, and their unknown keys. Raises CallError for the first that cannot be read.

    Args:
        raw: a list of OpenAI's tool calls with or without the envelope `function`, or the JSON text of one.
    """
    calls = _parse_json(raw, "has tool_calls that are") if isinstance(raw, str) else raw
    if not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
        raise CallError('has tool_calls that are no list of {"function": {"name", "arguments"}}')
    return [_call(call) for call in calls], [key for call in calls for key in _unknown_keys(call)]


def legacy_calls_of(function: Any) -> list[dict[str, Any]]:
    """Returns the calls in OpenAI's older `function_call` or in a message that is a call. Raises CallError.

    Args:
        function: a call, or a list of calls, or the JSON text of either; or a list of such texts.
    """
    calls = [call for given in _as_list(function) for call in _as_list(_parsed_call(given))]
    if not (calls and all(_is_call(call) for call in calls)):
        raise CallError('has a function call that is no object with "name" and "arguments"')
    return calls


def are_calls(content: Any) -> bool:
    """Whether a message's content is a list of calls: objects with a name and arguments."""
    return (
        isinstance(content, list)
        and bool(content)
        and all(_is_call(call) and not ARGUMENT_KEYS.isdisjoint(call.get("function", call)) for call in content)
    )


def tools_of(raw: Any) -> tuple[dict[str, Any], ...]:
    """Returns schemas, given as a list or as JSON text: tables cannot hold lists of unlike objects. Raises CallError."""
    if isinstance(raw, str):
        raw = _parse_json(raw, '"tools" is') if raw.strip() else []
    if raw and not (isinstance(raw, list) and all(isinstance(tool, dict) for tool in raw)):
        raise CallError('"tools" must be a list of objects; describe others in the system message')
    if fault := next(faults_of(raw), None):
        raise CallError(f'"tools": {fault}')
    return tuple(raw or ())


def tool_names(tools: Any) -> set[str]:
    """Returns the names of those tools that are schemas."""
    functions = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
    return {str(function["name"]) for function in functions if isinstance(function, dict) and function.get("name")}


def _is_call(call: Any) -> bool:
    function = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str) and bool(function["name"])


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parsed_call(given: Any) -> Any:
    return _parse_json(given, "has a function call that is") if isinstance(given, str) else given


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    if call.get("type") not in (None, "function"):
        raise CallError(f"calls something of the type {call['type']!r}; only functions can be called")
    if function.get("arguments") is not None and function.get("parameters") is not None:
        raise CallError(f'calls "{function["name"]}" with both arguments and parameters')
    given = function.get("arguments") if function.get("arguments") is not None else function.get("parameters")
    arguments = _arguments(function["name"], given)
    return canonical_call({**call, "function": {"name": function["name"], "arguments": arguments}})


def _arguments(name: str, given: Any) -> dict[str, Any]:
    """Returns arguments as an object, as chat templates expect them; OpenAI has JSON text. An empty text means none."""
    what = f'calls "{name}" with arguments that'
    if given is None or (isinstance(given, str) and not given.strip()):
        return {}
    value = _parse_json(given, f"{what} are") if isinstance(given, str) else given
    if not isinstance(value, dict):
        raise CallError(f"{what} must be an object, not {type(value).__name__}")
    if fault := next(faults_of(value), None):
        raise CallError(f"{what} JSON cannot say: {fault}")
    return dict(value)


def _unknown_keys(call: dict[str, Any]) -> Iterator[UnknownKey]:
    if "function" not in call:
        yield from unknown_keys(call, ("id", "type", *CALL_FUNCTION_KEYS), of="call", what="has a tool call with")
        return
    yield from unknown_keys(call, CALL_KEYS, of="call", what="has a tool call with")
    yield from unknown_keys(call["function"], CALL_FUNCTION_KEYS, of="call", what="has a tool call with")


def _parse_json(text: str, what: str) -> Any:
    """Parses JSON text. `what` begins the error message and ends with a verb."""
    try:
        value, faults = read_json(text)
    except ValueError as error:
        cut = isinstance(error, json.JSONDecodeError) and ends_too_early(error)
        raise CallError(f"{what} not JSON: {json_error_reason(error)}{'; it was cut' if cut else ''}") from None
    if faults:
        raise CallError(f"{what} not clear: {faults[0]}")
    return value
