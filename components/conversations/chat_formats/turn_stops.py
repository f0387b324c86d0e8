"""How a chat template ends an assistant's turn.

A stop is what the template writes behind the newest message: one control token, or several in a row as far as the last
that ends a generation. If it writes nothing there, the model ends its turn by beginning the next role's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from components.conversations.chat_formats.control_tokens import AddedTokens
from components.conversations.chat_formats.shared_prefix import shared_prefix
from components.conversations.chat_formats.template_dialect import Raw, TemplateDialect, Write
from components.conversations.chat_formats.template_probes import CALLING, LAST_OF_CALL, PROBE
from components.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnStops:
    """`answer` and `call` are the stops as the template writes them behind an answer and behind calls.

    Where it writes none, both are "", and `next_user` and `next_tool` are the tokens of the roles that follow; `end` is the
    token that ends a conversation then.
    """

    answer: str
    call: str
    next_user: str = ""
    next_tool: str = ""
    end: str = ""

    @property
    def are_roles(self) -> bool:
        return not self.answer

    def added_behind(self, raw: Sequence[Raw], position: int) -> str:
        """Returns the stop of the assistant's message at `position` where the template writes none, by what follows it."""
        if not self.are_roles:
            return ""
        if position + 1 < len(raw):
            return self.next_tool if raw[position + 1]["role"] == "tool" else self.next_user
        return self.next_tool if raw[position].get("tool_calls") else self.end

    def written_behind(self, message: Raw) -> str:
        """Returns the stop that the template writes behind this message of the assistant."""
        return self.call if message.get("tool_calls") else self.answer

    def texts(self) -> list[str]:
        found = (self.next_user, self.next_tool, self.end) if self.are_roles else (self.answer, self.call)
        return list(dict.fromkeys(text for text in found if text))


def learn_stops(write: Write, dialect: TemplateDialect, added: AddedTokens, ends: Collection[str]) -> TurnStops | None:
    """Renders trial conversations. Returns None if no control token ends a turn.

    Args:
        ends: the texts of the tokens that end a generation, the tokenizer's end token first.
    """
    newest, inner = (write([dialect.raw(message) for message in PROBE[:count]]) for count in (2, 3))
    behind = newest[_end_of(newest, PROBE[1].content) :]
    run = _leading_run(behind, added)
    if run:
        between = inner[_end_of(inner, PROBE[1].content) :]
        answer = _stop_in(behind, _shared(behind, run, between, added), ends, otherwise=0)
        return TurnStops(answer=answer, call=_call_stop(write, dialect, added, ends, answer))
    next_user = _role_behind(newest, inner, added)
    if not (next_user and ends):
        return None
    try:
        called, returned = (write([dialect.raw(message) for message in CALLING[:count]]) for count in (2, 3))
        next_tool = _role_behind(called, returned, added)
    except InputError:
        next_tool = ""
    return TurnStops(answer="", call="", next_user=next_user, next_tool=next_tool or next_user, end=next(iter(ends)))


def _end_of(text: str, word: str) -> int:
    return text.rfind(word) + len(word)


def _leading_run(text: str, added: AddedTokens) -> list[tuple[int, int]]:
    """Returns the spans of the control tokens with which a text begins, blanks between them left out."""
    spans, at = [], len(text) - len(text.lstrip())
    while match := added.pattern.match(text, at):
        spans.append(match.span())
        at = match.end() + len(text[match.end() :]) - len(text[match.end() :].lstrip())
    return [span for span in spans if span[1] > span[0]]


def _shared(text: str, run: list[tuple[int, int]], other: str, added: AddedTokens) -> list[tuple[int, int]]:
    """Returns the first tokens of a text's run with which another text begins, too; the whole run if there are none."""
    tokens = [text[start:end] for start, end in run]
    others = [other[start:end] for start, end in _leading_run(other, added)]
    return run[: shared_prefix(tokens, others)] or run


def _stop_in(text: str, run: list[tuple[int, int]], ends: Collection[str], *, otherwise: int) -> str:
    """Returns the text of a run's tokens up to the last that ends a generation; if none does, up to `otherwise`."""
    last = max((number for number, (start, end) in enumerate(run) if text[start:end] in ends), default=otherwise)
    return text[run[0][0] : run[last][1]]


def _call_stop(write: Write, dialect: TemplateDialect, added: AddedTokens, ends: Collection[str], answer: str) -> str:
    """Returns the stop behind calls: that of answers, unless the template writes another one."""
    try:
        newest, inner = (write([dialect.raw(message) for message in CALLING[:count]]) for count in (2, 3))
    except InputError:
        return answer
    behind, between = (text[_end_of(text, LAST_OF_CALL) :] for text in (newest, inner))
    found = re.search(rf"(?:\s*(?:{added.pattern.pattern}))+\s*$", behind)
    if answer in behind or found is None or not found[0].strip():
        return answer
    behind, between = (text[found.start() :] for text in (behind, between))
    return _stop_in(behind, _shared(behind, _leading_run(behind, added), between, added), ends, otherwise=-1)


def _role_behind(newest: str, inner: str, added: AddedTokens) -> str:
    """Returns the control token with which a conversation goes on behind its newest message; "" if there is none."""
    match = added.pattern.match(inner[len(newest) :].lstrip()) if inner.startswith(newest) else None
    return match[0] if match else ""
