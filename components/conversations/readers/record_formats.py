"""The formats of records with conversations, each converted to raw messages. validation.py reports what is wrong in them.

The function of a format takes a record and returns its messages with OpenAI's keys; all other keys stay on them. It raises
RecordFormatError for what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.conversations.expected import expect_problem
from components.conversations.readers.chatglm3_records import are_free_form, describe_tools, to_openai_messages
from components.conversations.readers.message_forms import in_one_form
from components.conversations.readers.raw_message import Raw, RawMessage, RecordFormatError
from components.conversations.readers.tool_calls import CallError, tool_names, tools_of
from components.conversations.readers.unknown_keys import UnknownKey, is_absent, keys_of_record

SYSTEM_KEYS = ("system", "system_prompt", "system_message")
TOOL_LIST_KEYS = ("tools", "functions")
GROUP_KEY = "group"
EXPECT_KEY = "expect"


@dataclass(frozen=True, slots=True, kw_only=True)
class RawConversation:
    """A record's messages, tools and expectation. `notes` are its keys that change no token, `unknown` those that might.

    `group` is added by groups.py, which knows the field that is asked for.
    """

    messages: list[RawMessage]
    tools: tuple[dict[str, Any], ...] = ()
    group: str | None = None
    expect: str | None = None
    unknown: list[UnknownKey] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# The keys of question and answer in Alpaca-like records; content and summary are those of AdvertiseGen, the data of
# ChatGLM's own demos.
PAIRS = (("prompt", "response"), ("prompt", "completion"), ("query", "response"), ("content", "summary"))


def _openai(record: Any) -> RawConversation:
    """{"messages": [{"role", "content", ...}], "tools": [...]}; content may be a list of text parts."""
    messages = _number_messages(_field(record, "messages", list))
    return _conversation(record, messages, ("messages",))


def _sharegpt(record: Any) -> RawConversation:
    """{"conversations": [{"from": "human", "value": ...}], "system": ..., "tools": ...}; `conversation` is the same."""
    key = (
        "conversation"
        if detect_record_format(record) == "sharegpt" and "conversations" not in record
        else "conversations"
    )
    turns = _number_messages(_field(record, key, list))
    return _conversation(record, [_sharegpt_turn(turn) for turn in turns], (key,))


def _sharegpt_turn(turn: RawMessage) -> RawMessage:
    keys = dict(turn.keys)
    for ours, theirs in {"role": "from", "content": "value"}.items():
        if theirs in keys:
            value = keys.pop(theirs)
            if keys.setdefault(ours, value) != value:
                raise RecordFormatError(f'{turn.location} has both "{theirs}" and "{ours}", and they differ')
    return RawMessage(location=turn.location, keys=keys)


def _alpaca(record: Any) -> RawConversation:
    """{"instruction", "input", "output", "history": [[question, answer], ...], "system"}"""
    instruction, output = _field(record, "instruction", str), _field(record, "output", str)
    extra = _optional_text(record, "input")
    question = "\n".join(text for text in (instruction, extra) if text.strip())
    return _conversation(
        record, _question_and_answer(record, question, output), ("instruction", "input", "output", "history")
    )


def _pairs(record: Any) -> RawConversation:
    """{"prompt", "response"} or another of PAIRS, with "history" and "system" as in Alpaca."""
    found = _pair_in(record)
    if found is None:
        named = ", ".join(f'"{asks}" and "{answers}"' for asks, answers in PAIRS)
        raise RecordFormatError(f"has no pair of keys for a question and its answer ({named})")
    asks, answers = found
    messages = _question_and_answer(record, _field(record, asks, str), _field(record, answers, str))
    return _conversation(record, messages, (asks, answers, "history"))


def _nested(record: Any) -> RawConversation:
    """[{"role": "USER", "content"}, {"role": "ASSISTANT", "content"}, ...]"""
    if not isinstance(record, list):
        raise RecordFormatError(f"must be a list of messages, not {type(record).__name__}")
    return _conversation({}, _number_messages(record), ())


RECORD_FORMATS: dict[str, Callable[[Any], RawConversation]] = {
    "messages": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "pairs": _pairs,
    "nested": _nested,
}
_FORMAT_OF_KEY = {
    "messages": "messages",
    "conversations": "sharegpt",
    "conversation": "sharegpt",
    "instruction": "alpaca",
}


def detect_record_format(record: Any) -> str | None:
    """Detects the format of a record by its keys, or as a list of messages; None if it is neither."""
    if isinstance(record, list):
        return "nested" if record and all(isinstance(message, dict) for message in record) else None
    if isinstance(record, dict):
        for key, record_format in _FORMAT_OF_KEY.items():
            if record.get(key) is not None:
                return record_format
        return "pairs" if _pair_in(record) else None
    return None


def _conversation(record: Raw, messages: list[RawMessage], own: Collection[str]) -> RawConversation:
    """Adds what all formats share: a record's system message and tools. Converts messages in the words of other tools."""
    unknown, notes = keys_of_record(record, (*own, *SYSTEM_KEYS, *TOOL_LIST_KEYS, GROUP_KEY, EXPECT_KEY))
    messages, listed = _split_tools(in_one_form(messages))
    messages = [*_system(record, messages), *messages]
    if are_free_form(described := record.get("tools"), messages):
        record, messages = {**record, "tools": None}, describe_tools(messages, described)
    tools = _tools(record) or listed
    if listed and tools != listed:
        raise RecordFormatError("has tools for the record and others in its system message; give them once")
    messages = to_openai_messages(messages, tool_names(tools))
    return RawConversation(messages=messages, tools=tools, expect=_expect(record), unknown=unknown, notes=notes)


def _expect(record: Raw) -> str | None:
    """Returns what the last answer should hold, for scores of generated answers; no token depends on it."""
    expect = record.get(EXPECT_KEY)
    if is_absent(expect):
        return None
    if problem := expect_problem(expect):
        raise RecordFormatError(problem)
    return str(expect)


def _system(record: Raw, messages: Sequence[RawMessage]) -> list[RawMessage]:
    """Returns the record's system text as a message, unless the first message has the same text."""
    given = {key: text for key in SYSTEM_KEYS if (text := _optional_text(record, key))}
    if not given:
        return []
    key, text = next(iter(given.items()))
    has_system = bool(messages) and messages[0].role == "system"
    if len(set(given.values())) > 1 or (has_system and messages[0].keys.get("content") != text):
        raise RecordFormatError(f'has a "{key}" and another system message; give it once')
    return [] if has_system else [RawMessage(location=f'"{key}"', keys={"role": "system", "content": text})]


def _split_tools(messages: list[RawMessage]) -> tuple[list[RawMessage], tuple[Raw, ...]]:
    """Returns messages, and the tools of a system message, where ChatGLM3 lists them. Chat formats introduce them again."""
    if not messages or messages[0].role != "system":
        return messages, ()
    system, tools = messages[0], _tools(messages[0].keys)
    keys = {key: value for key, value in system.keys.items() if key not in TOOL_LIST_KEYS}
    only_tools = tools and "content" not in keys and all(is_absent(keys[key]) for key in keys if key != "role")
    kept = [] if only_tools else [RawMessage(location=system.location, keys=keys)]
    return [*kept, *messages[1:]], tools


def _tools(mapping: Raw) -> tuple[Raw, ...]:
    """Returns the tools of a record or message; each of OpenAI's older `functions` becomes a tool."""
    try:
        tools, functions = (tools_of(mapping.get(key)) for key in TOOL_LIST_KEYS)
    except CallError as error:
        raise RecordFormatError(str(error)) from None
    if tools and functions:
        raise RecordFormatError("has both tools and functions; give them once, as tools")
    return tools or tuple({"type": "function", "function": function} for function in functions)


def _question_and_answer(record: Raw, question: str, answer: str) -> list[RawMessage]:
    """Returns the history, the question and its answer as messages."""
    turns: list[tuple[str, Any]] = []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise RecordFormatError(f'"history" must be a list of pairs, not {type(history).__name__}')
    for number, pair in enumerate(history, start=1):
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise RecordFormatError(f"history {number} must be a pair [question, answer], not {pair!r}")
        turns += [(f"history {number}", text) for text in pair]
    turns += [("the question", question), ("the answer", answer)]
    roles = ("user", "assistant") * len(turns)
    return [
        RawMessage(location=location, keys={"role": role, "content": text})
        for (location, text), role in zip(turns, roles, strict=False)
    ]


def _pair_in(record: Any) -> tuple[str, str] | None:
    keys = record if isinstance(record, dict) else {}
    return next((pair for pair in PAIRS if all(keys.get(key) is not None for key in pair)), None)


def _field(record: Any, key: str, kind: type) -> Any:
    if not isinstance(record, dict):
        raise RecordFormatError(f"must be an object, not {type(record).__name__}")
    if key not in record:
        raise RecordFormatError(f'has no "{key}" (keys: {", ".join(map(str, record)) or "none"})')
    if not isinstance(record[key], kind):
        raise RecordFormatError(f'"{key}" must be a {kind.__name__}, not {type(record[key]).__name__}')
    return record[key]


def _number_messages(messages: list[Any]) -> list[RawMessage]:
    """Returns messages with their numbers as locations, without keys that are null."""
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict):
            raise RecordFormatError(f"message {number} must be an object, not {type(message).__name__}")
    return [
        RawMessage(
            location=f"message {number}", keys={key: value for key, value in message.items() if value is not None}
        )
        for number, message in enumerate(messages, start=1)
    ]


def _optional_text(record: Any, key: str) -> str:
    value = record.get(key) or ""
    if not isinstance(value, str):
        raise RecordFormatError(f'"{key}" must be a string, not {type(value).__name__}')
    return value
