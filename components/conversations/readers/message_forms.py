"""One form of an assistant's message, which tools write in several: calls as its content, thoughts as its first parts.

    {"role": "tool_call", "content": '{"name": ...}'}               function_call, part of the message before it
    {"role": "assistant", "content": [{"name", "arguments"}]}       function_call
    {"role": "assistant", "content": [{"type": "thinking", ...}]}   reasoning_content

What is only nearly one of these stays as it is, and is refused where a message's keys are validated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from components.conversations.messages import REASONING_KEYS
from components.conversations.readers.loss_weights import weight_of, weight_problems
from components.conversations.readers.raw_message import RawMessage, RecordFormatError
from components.conversations.readers.tool_calls import are_calls
from components.conversations.readers.unknown_keys import is_absent
from components.conversations.roles import is_calling

THOUGHTS = ("thinking", "reasoning")  # types of parts
KEYS_OF_A_THOUGHT = {"type", "text", *THOUGHTS, "signature", "closed"}  # the last two say nothing to a model of text


def in_one_form(messages: Sequence[RawMessage]) -> list[RawMessage]:
    """Converts messages. Raises RecordFormatError for a call that calls nothing, or that is given twice."""
    read: list[RawMessage] = []
    for message in messages:
        if message.role != "assistant":
            read.append(message)
        elif is_calling(message.keys.get("role")):
            read = _append_call(read, _calls_apart(message))
        else:
            read.append(_thoughts_apart(_calls_apart(message)))
    return read


def one_turn(thought: RawMessage, call: RawMessage, **keys: Any) -> RawMessage:
    """Returns a message of the assistant and the call that it led to as one. Raises RecordFormatError if scored otherwise."""
    unreadable = weight_problems(thought.keys) or weight_problems(call.keys)
    if not unreadable and weight_of(thought.keys) != weight_of(call.keys):
        raise RecordFormatError(
            f"{thought.location} and the call in {call.location} are one turn of the assistant, but are scored otherwise;"
            " give both the same loss"
        )
    return RawMessage(location=thought.location, keys={**call.keys, **thought.keys, **keys}, calls=call.calls)


def reasoning_problem(given: Sequence[Any]) -> str | None:
    """Returns what is wrong with the values of REASONING_KEYS that a message has."""
    if not all(isinstance(text, str) for text in given):
        return f"has reasoning that is no text ({', '.join(REASONING_KEYS)})"
    if len(set(given)) > 1:
        return f"has different texts as {', '.join(REASONING_KEYS)}; give one of them"
    return None


def reasoning_in(keys: dict[str, Any]) -> list[Any]:
    return [keys[key] for key in REASONING_KEYS if not is_absent(keys.get(key))]


def _calls_apart(message: RawMessage) -> RawMessage:
    """Returns the message with its content as `function_call` if that is a call, or several."""
    content, by_role = message.keys.get("content"), is_calling(message.keys.get("role"))
    if not (by_role or are_calls(content)):
        return message
    if is_absent(content):
        if not message.has_calls:
            raise RecordFormatError(f"{message.location} is a function call, but an empty one")
        return message
    if message.has_calls:
        raise RecordFormatError(f"{message.location} has calls as its content, and others beside it; give them once")
    return message.with_keys(content="", function_call=content if isinstance(content, list) else [content])


def _append_call(read: list[RawMessage], call: RawMessage) -> list[RawMessage]:
    """Appends a call; it becomes part of the assistant's message before it, if there is one. So do calls in a row."""
    before = read[-1] if read else None
    if (
        before is None
        or before.role != "assistant"
        or not all(is_absent(message.keys.get("tool_calls")) for message in (before, call))
    ):
        return [*read, call]
    calls = [*_older_calls(before), *_older_calls(call)]
    return [*read[:-1], one_turn(before, call, function_call=calls)]


def _older_calls(message: RawMessage) -> list[Any]:
    calls = message.keys.get("function_call")
    return [] if is_absent(calls) else calls if isinstance(calls, list) else [calls]


def _thoughts_apart(message: RawMessage) -> RawMessage:
    """Returns the message with the thoughts that its content begins with as its reasoning, unless it has another one."""
    content = message.keys.get("content")
    parts = content if isinstance(content, list) else []
    thoughts = list(takewhile(_is_thought, parts))
    reasoning = "".join(_text_of(thought) for thought in thoughts)
    if not thoughts or any(given != reasoning for given in reasoning_in(message.keys)):
        return message
    return message.with_keys(reasoning_content=reasoning, content=parts[len(thoughts) :] or "")


def _is_thought(part: Any) -> bool:
    if not (isinstance(part, dict) and part.get("type") in THOUGHTS and KEYS_OF_A_THOUGHT.issuperset(part)):
        return False
    return isinstance(_text_of(part), str)


def _text_of(thought: dict[str, Any]) -> Any:
    """Returns the text of a thought, which may itself be a list of text parts."""
    text = thought.get(thought["type"], thought.get("text"))
    if isinstance(text, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in text):
        texts = [part.get("text") for part in text]
        return "".join(texts) if all(isinstance(one, str) for one in texts) else None
    return text
