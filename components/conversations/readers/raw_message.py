"""A message of a record before validation: OpenAI's keys, and all other keys still present."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from components.conversations.readers.unknown_keys import is_absent
from components.conversations.roles import role_of
from components.errors import InputError

Raw = dict[str, Any]
CALL_KEYS = ("tool_calls", "function_call")


class RecordFormatError(InputError):
    """A record that is not in the format in which it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """`location` is the message's position in the record: `message 2`. `calls` are tool calls in canonical form."""

    location: str
    keys: Raw
    calls: tuple[Raw, ...] = ()

    @property
    def role(self) -> Any:
        """The role in our words, whatever its name in the record is; a name that means none, unchanged."""
        return role_of(self.keys.get("role"))

    @property
    def has_calls(self) -> bool:
        return bool(self.calls) or not all(is_absent(self.keys.get(key)) for key in CALL_KEYS)

    def with_keys(self, **keys: Any) -> RawMessage:
        return replace(self, keys={**self.keys, **keys})
