"""Answers that programs read: JSON, and calls of tools."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for

from components.conversations.canonical_tools import canonical_call
from components.errors import InputError

_FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL | re.IGNORECASE)
NOT_JSON = object()


def json_in(text: str) -> Any:
    """Returns the value of a text that is JSON and nothing else, or one fenced block of it; NOT_JSON if it is not."""
    fenced = _FENCE.fullmatch(text.strip())
    try:
        return json.loads(fenced[1] if fenced else text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


class JsonSchema:
    """A JSON Schema. Raises InputError if it is none."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        validator = validator_for(schema)
        try:
            validator.check_schema(schema)
        except SchemaError as error:
            raise InputError(
                f"evaluation.generate.json_schema: not a JSON Schema: {error.message}; https://json-schema.org says how"
            ) from None
        self._validator = validator(schema)

    def allows(self, text: str) -> bool:
        value = json_in(text)
        return value is not NOT_JSON and bool(self._validator.is_valid(value))


def same_calls(said: Sequence[dict[str, Any]], reference: Sequence[dict[str, Any]]) -> bool:
    """Whether the calls have the same names and arguments in the same order. Ids and the order of arguments are no matter."""
    return [canonical_call(call)["function"] for call in said] == [
        canonical_call(call)["function"] for call in reference
    ]
