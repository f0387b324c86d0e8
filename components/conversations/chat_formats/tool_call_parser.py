"""Parses tool calls in a model's output, in the form in which its chat template writes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from components.conversations.chat_formats.template_probes import PROBE_CALL

CONTROL = re.compile(r"<\|\w+\|>")
BARE = ("{", "[")  # a call that begins like this cannot be distinguished from other JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallParser:
    """The text of a call before its name, between name and arguments, and after them; outer blanks are removed."""

    before: str
    between: str
    after: str

    def read(self, text: str) -> tuple[str, list[dict[str, Any]]] | None:
        """Returns (text before the first call, calls) if the text ends with calls, else None."""
        start = text.find(self.before)
        if start < 0:
            return None
        calls = list(self._calls(text[start:]))
        return None if None in calls else (text[:start], [call for call in calls if call is not None])

    def words(self, text: str) -> str:
        """Returns the part of an unfinished text that can no longer become part of a call."""
        return words_before(text, self.before)

    def _calls(self, text: str) -> Iterator[dict[str, Any] | None]:
        """Yields calls; None, and nothing after it, where the text is not a call."""
        while text:
            name, found, rest = text.removeprefix(self.before).partition(self.between)
            if not (found and text.startswith(self.before)):
                yield None
                return
            try:
                arguments, end = json.JSONDecoder().raw_decode(rest)
            except (json.JSONDecodeError, RecursionError):
                yield None
                return
            rest = rest[end:].lstrip()
            if not rest.startswith(self.after):
                yield None
                return
            yield {"type": "function", "function": {"name": name, "arguments": arguments}}
            text = rest.removeprefix(self.after).lstrip()


def words_before(text: str, call: str) -> str:
    """Returns the part of an unfinished text that can no longer become part of what begins with `call`."""
    start = text.find(call)
    if start >= 0:
        return text[:start].rstrip()
    begun = next((size for size in range(len(call), 0, -1) if text.endswith(call[:size])), 0)
    return text[: len(text) - begun].rstrip()


def learn_tool_calls(write: Callable[[Sequence[dict[str, Any]]], str]) -> ToolCallParser | None:
    """Learns from one call how a template writes calls. Returns None if it writes none, or they look like other answers.

    Args:
        write: returns an assistant's turn with calls, without its stop. Raises ValueError if the template has none.
    """
    function = PROBE_CALL["function"]
    try:
        text = write([PROBE_CALL])
    except ValueError:
        return None
    before, _, rest = text.partition(function["name"])
    between, found, after = rest.partition(json.dumps(function["arguments"]))
    # A template that opens a call by a token may have nothing but the stop behind it.
    closes = after.strip() or (CONTROL.search(between) and not after)
    if not (found and between and before.strip() and closes) or before.lstrip().startswith(BARE):
        return None
    return ToolCallParser(before=before.lstrip(), between=between, after=after.strip())
