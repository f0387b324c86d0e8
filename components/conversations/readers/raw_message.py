"""A message on its way from a record to a conversation: its keys in OpenAI's words, everything else still on it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

Raw = dict[str, Any]


class RecordFormatError(ValueError):
    """A record is not in the layout it is read in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawMessage:
    """`place` is where people find it in the record: `message 2`. `calls` are tool calls that are in one shape already."""

    place: str
    keys: Raw
    calls: tuple[Raw, ...] = ()

    @property
    def role(self) -> Any:
        return self.keys.get("role")

    def with_keys(self, **keys: Any) -> RawMessage:
        return replace(self, keys={**self.keys, **keys})
