"""A message of a record before validation: OpenAI's keys, and all other keys still present."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from components.errors import InputError

Raw = dict[str, Any]


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
        return self.keys.get("role")

    def with_keys(self, **keys: Any) -> RawMessage:
        return replace(self, keys={**self.keys, **keys})
