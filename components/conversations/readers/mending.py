"""Mends the order of a conversation's messages by leaving out as little as possible; where only that is wrong, it is usable.

    what follows the last answer            is cut: nothing in it is scored
    answers before the first question       are cut, with the results of their calls
    questions in a row                      become one, a blank line between them
    answers in a row                        become one, too, if they are scored alike

Everything else that is wrong stays, as does what would have to be guessed: messages in a row that differ in another key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from components.conversations.messages import REASONING_KEYS
from components.conversations.readers.loss_weights import LOSS_KEYS, weight_of, weight_problems
from components.conversations.readers.message_forms import reasoning_in
from components.conversations.readers.message_text import content_text
from components.conversations.readers.raw_message import CALL_KEYS, Raw, RawMessage
from components.conversations.readers.unknown_keys import is_absent

BETWEEN = "\n\n"
UNANSWERED, UNASKED, QUESTIONS, ANSWERS = "unanswered", "unasked", "questions", "answers"
# What happened to so many conversations, by kind.
WORDS = {
    UNANSWERED: "lost an unanswered end",
    UNASKED: "lost a beginning without a question",
    QUESTIONS: "with merged questions",
    ANSWERS: "with merged answers",
}
MERGED = {"user": QUESTIONS, "assistant": ANSWERS}
# Keys that have a rule of their own where messages become one. All others must be equal.
RULED = {
    "user": {"role", "content"},
    "assistant": {"role", "content", *CALL_KEYS, *LOSS_KEYS, *REASONING_KEYS},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """`text` says what is done to which messages: `message 3 is cut, for no answer follows`."""

    kind: str
    text: str


def mend(messages: Sequence[RawMessage]) -> tuple[list[RawMessage], list[Mend]]:
    """Returns (messages, what was done). Where nothing can be done, messages are returned as they are."""
    kept, ends = _cut_end(messages)
    kept, beginnings = _cut_beginning(kept)
    kept, merged = _merge(kept)
    return kept, [*ends, *beginnings, *merged]


def mended_sentence(counts: Mapping[str, int], total: int) -> str:
    """Returns `3 mended (2 lost an unanswered end, 1 with merged questions)`. A conversation may be of several kinds."""
    kinds = ", ".join(f"{counts[kind]:,} {words}" for kind, words in WORDS.items() if counts.get(kind))
    return f"{total:,} mended ({kinds})"


def _cut_end(messages: Sequence[RawMessage]) -> tuple[list[RawMessage], list[Mend]]:
    """Cuts what follows the last answer: questions, results and system messages."""
    size = len(messages)
    while size and messages[size - 1].role in ("system", "user", "tool"):
        size -= 1
    if size in (0, len(messages)):
        return list(messages), []
    return list(messages[:size]), [_cut(UNANSWERED, messages[size:], "no answer follows")]


def _cut_beginning(messages: Sequence[RawMessage]) -> tuple[list[RawMessage], list[Mend]]:
    """Cuts answers before the first question, and results of their calls. System messages stay."""
    cut: list[RawMessage] = []
    kept: list[RawMessage] = []
    called = False
    for position, message in enumerate(messages):
        if message.role == "system":
            kept.append(message)
        elif message.role == "assistant" or (message.role == "tool" and called):
            cut.append(message)
            called = message.has_calls or (called and message.role == "tool")
        elif message.role == "user" and cut:
            return [*kept, *messages[position:]], [_cut(UNASKED, cut, "no question is before it")]
        else:
            break
    return list(messages), []


def _merge(messages: Sequence[RawMessage]) -> tuple[list[RawMessage], list[Mend]]:
    """Merges questions in a row, and answers in a row."""
    kept: list[RawMessage] = []
    done: list[Mend] = []
    for role, same in groupby(messages, key=lambda message: str(message.role)):
        run = list(same)
        one = _merged(run) if len(run) > 1 and role in MERGED else None
        kept += run if one is None else [one]
        done += [] if one is None else [Mend(kind=MERGED[role], text=f"{_names(run)} become one")]
    return kept, done


def _merged(run: Sequence[RawMessage]) -> RawMessage | None:
    """Returns the messages as one, or None if that would be a guess: only their texts may differ, and the last may call."""
    *firsts, last = run
    texts = [_text(message) for message in run]
    if any(message.has_calls for message in firsts) or not (all(texts[:-1]) and (texts[-1] or last.has_calls)):
        return None
    if any(reasoning_in(message.keys) for message in run[1:]) or any(weight_problems(message.keys) for message in run):
        return None
    if not all(weight_of(one.keys) == weight_of(other.keys) for one, other in pairwise(run)):
        return None
    if any(_others(message) != _others(last) for message in firsts):
        return None
    calls = {key: last.keys[key] for key in CALL_KEYS if key in last.keys}
    return replace(run[0].with_keys(content=BETWEEN.join(filter(None, texts)), **calls), calls=last.calls)


def _text(message: RawMessage) -> str:
    """Returns the text of a message; nothing for one whose content is not plainly a text."""
    text, problems, unknown = content_text(message.keys.get("content", ""), message.role)
    return "" if problems or unknown or not text.strip() else text


def _others(message: RawMessage) -> Raw:
    """Returns the keys that would be lost if the message became a part of another one: its name, keys nobody knows."""
    ruled = RULED[message.role]
    return {key: value for key, value in message.keys.items() if key not in ruled and not is_absent(value)}


def _cut(kind: str, messages: Sequence[RawMessage], reason: str) -> Mend:
    return Mend(kind=kind, text=f"{_names(messages)} {'are' if len(messages) > 1 else 'is'} cut, for {reason}")


def _names(messages: Sequence[RawMessage]) -> str:
    *others, last = [message.location for message in messages]
    return f"{', '.join(others)} and {last}" if others else last
