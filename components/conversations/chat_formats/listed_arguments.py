"""Parses tool calls whose arguments a chat template writes one by one: in tags, or as Python writes them.

<call><function=add><parameter=a>2</parameter></function></call>        [add(a=2), now()]
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.conversations.chat_formats.tool_call_parser import BARE, words_before
from components.errors import InputError

NAMES, KEYS, VALUES = ("probe", "other"), ("first", "second"), ("alpha", "beta")
Call = dict[str, Any]


class _NoCallError(ValueError):
    """A text that is no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedArgumentsParser:
    """What a template writes before a call's name, `before` its first key, `between` key and value, and behind a value.

    Behind a value comes the next key (`next_key`), the next call's name (`next_call`) or the end. `bare` are the texts behind
    the name of a call without arguments: the next call's name, or the end. `quotes` says that texts are written as JSON.
    """

    before: str
    first_key: str
    between: str
    next_key: str
    next_call: str
    end: str
    bare: tuple[str, str]
    quotes: bool

    def read(self, text: str) -> tuple[str, list[Call]] | None:
        """Returns (text before the first call, calls) if the text ends with calls, else None."""
        start = text.find(self.before)
        if start < 0:
            return None
        try:
            return text[:start], self._calls(text[start + len(self.before) :].rstrip())
        except _NoCallError:
            return None

    def words(self, text: str) -> str:
        """Returns the part of an unfinished text that can no longer become part of a call."""
        return words_before(text, self.before)

    def _calls(self, text: str) -> list[Call]:
        calls: list[Call] = []
        behind = ""
        while behind not in (self.end, self.bare[1]):
            name, behind, text = _cut(text, (self.first_key, *self.bare))
            arguments: dict[str, Any] = {}
            if behind == self.first_key:
                arguments, behind, text = self._arguments(text)
            calls.append({"type": "function", "function": {"name": name, "arguments": arguments}})
        if text:
            raise _NoCallError
        return calls

    def _arguments(self, text: str) -> tuple[dict[str, Any], str, str]:
        """Returns (arguments, what is behind the last of them, the text behind that)."""
        arguments: dict[str, Any] = {}
        behind = self.next_key
        while behind == self.next_key:
            key, _, text = _cut(text, (self.between,))
            value, behind, text = self._value(text)
            arguments[key] = value
        return arguments, behind, text

    def _value(self, text: str) -> tuple[Any, str, str]:
        behind = (self.next_key, self.next_call, self.end)
        if not self.quotes:
            written, found, text = _cut(text, behind)
            return _json_or_text(written), found, text
        try:
            value, at = json.JSONDecoder().raw_decode(text)
        except (json.JSONDecodeError, RecursionError):
            raise _NoCallError from None
        nothing, found, text = _cut(text[at:], behind)
        if nothing:
            raise _NoCallError
        return value, found, text


def learn_listed_arguments(write: Callable[[Sequence[Call]], str]) -> ListedArgumentsParser | None:
    """Learns from trial calls. Returns None if the template writes none, or not in this form.

    Args:
        write: returns an assistant's turn with calls, without its stop. Raises InputError if the template refuses them.
    """
    (name, other), (key, second), (value, last) = NAMES, KEYS, VALUES
    try:
        text = write([_call(name, {key: value, second: last})])
        plain = write([_call(name, {})])
    except InputError:
        return None
    quotes = f'"{value}"' in text
    value, last = (f'"{value}"', f'"{last}"') if quotes else (value, last)
    pieces = _pieces(text, (name, key, value, second, last))
    bare = _pieces(plain, (name,))
    if pieces is None or bare is None:
        return None
    before, first_key, between, next_key, between_again, end = pieces
    is_marked = before.strip() and end.strip() and bare[1].strip() and not before.lstrip().startswith(BARE)
    if between != between_again or not (is_marked and first_key and between and next_key):
        return None
    return ListedArgumentsParser(
        before=before.lstrip(),
        first_key=first_key,
        between=between,
        next_key=next_key,
        next_call=_between_calls(write, {key: VALUES[0]}, value, other),
        end=end.rstrip(),
        bare=(_between_calls(write, {}, name, other), bare[1].rstrip()),
        quotes=quotes,
    )


def _between_calls(write: Callable[[Sequence[Call]], str], arguments: Mapping[str, Any], after: str, other: str) -> str:
    """Returns what is written between the last text of a call and the next call's name; "" if there can be no other."""
    try:
        pieces = _pieces(write([_call(NAMES[0], arguments), _call(other, {})]), (after, other))
    except InputError:
        return ""
    return pieces[1] if pieces else ""


def _call(name: str, arguments: Mapping[str, Any]) -> Call:
    return {"id": "call00001", "type": "function", "function": {"name": name, "arguments": dict(arguments)}}


def _pieces(text: str, parts: Sequence[str]) -> list[str] | None:
    """Returns the texts before, between and behind the parts; None if they are not all there, in this order."""
    pieces = []
    for part in parts:
        piece, found, text = text.partition(part)
        if not found:
            return None
        pieces.append(piece)
    return [*pieces, text]


def _cut(text: str, marks: Sequence[str]) -> tuple[str, str, str]:
    """Returns (text before the first of the marks, that mark, text behind it). Of two at one place, the longer one."""
    found = [(text.find(mark), -len(mark), mark) for mark in marks if mark and mark in text]
    if not found:
        raise _NoCallError
    at, _, mark = min(found)
    return text[:at], mark, text[at + len(mark) :]


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return text
