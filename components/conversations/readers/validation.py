"""Validates conversations for training. Every broken rule is reported, not only the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from components.conversations.messages import REASONING_KEYS, ROLES, Conversation, Message, Role
from components.conversations.readers.loss_weights import LOSS_KEYS, asks_to_be_scored, weight_of, weight_problems
from components.conversations.readers.message_forms import reasoning_in, reasoning_problem
from components.conversations.readers.message_text import message_text
from components.conversations.readers.raw_message import Raw, RawMessage
from components.conversations.readers.record_formats import RawConversation
from components.conversations.readers.tool_calls import CallError, calls_of, legacy_calls_of
from components.conversations.readers.unknown_keys import UnknownKey, is_absent, unknown_keys
from components.conversations.roles import ROLES_ARE

UNKNOWN = "unknown"
COMMON_KEYS = ("role", "content", "name", *LOSS_KEYS)
KEYS = {
    "system": COMMON_KEYS,
    "user": COMMON_KEYS,
    "assistant": (*COMMON_KEYS, "tool_calls", "function_call", *REASONING_KEYS),
    "tool": (*COMMON_KEYS, "tool_call_id"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """The conversation, or None and its problems. `unknown` are the keys that were left out of it."""

    conversation: Conversation | None
    problems: list[str]
    unknown: list[UnknownKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class _MessageCheck:
    """One message; `problems` and `unknown` name its location."""

    message: Message | None
    problems: list[str]
    unknown: list[UnknownKey]
    calls: bool


def validate(raw: RawConversation, source: str) -> Validation:
    read = [_check_message(message) for message in raw.messages]
    problems = [*_conversation_problems(raw.messages, read)]
    unknown = [*raw.unknown, *(key for one in read for key in one.unknown)]
    messages = tuple(one.message for one in read if one.message is not None)
    if not problems and not any(message.role == "assistant" and message.loss_weight > 0 for message in messages):
        problems = ["no assistant message has a loss above 0, so there is nothing to train on"]
    conversation = (
        None
        if problems
        else Conversation(messages=messages, tools=raw.tools, source=source, group=raw.group, expect=raw.expect)
    )
    return Validation(conversation=conversation, problems=problems, unknown=unknown)


def _conversation_problems(messages: Sequence[RawMessage], read: Sequence[_MessageCheck]) -> Iterator[str]:
    """Yields the problems of each message, and of the order of roles."""
    if not messages:
        yield "there are no messages"
        return
    before: str | None = None
    called = False
    for message, one in zip(messages, read, strict=True):
        role = message.role
        yield from one.problems
        if role not in ROLES:
            before, called = UNKNOWN, True  # the next message cannot be judged
            continue
        if text := _turn_problem(role, before, called):
            yield f"{message.location} {text}"
        if role != "system":  # it may stand anywhere: a chat format shows it there, or refuses it
            before, called = role, one.calls or (role == "tool" and called)
    if (last := messages[-1].role) in ("system", "user", "tool"):
        yield f'{messages[-1].location}, the last, is from "{last}"; the last word must be the assistant\'s'


def _turn_problem(role: str, before: str | None, called: bool) -> str | None:
    if role == "system":
        return None
    if role == "user":
        if before == "user":
            return 'is from "user" after "user"; roles must alternate'
        return (
            'is from "user" after tool calls; their results (role "tool") must come first'
            if called and before == "assistant"
            else None
        )
    if role == "assistant":
        if before is None:
            return 'is from "assistant"; a conversation must begin with the user'
        return 'is from "assistant" after "assistant"; roles must alternate' if before == "assistant" else None
    return None if called else 'is from "tool", but no tool was called before it'


def _check_message(message: RawMessage) -> _MessageCheck:
    keys, role = message.keys, message.role
    try:
        calls, unknown = _calls(message)
        broken_calls = []
    except CallError as error:
        calls, unknown, broken_calls = [{}], [], [str(error)]  # there is a call, though unreadable
    content, broken_content, of_parts = message_text(keys, role, calls=bool(calls))
    problems = [
        *([] if role in ROLES else [f"has the role {role!r}; {ROLES_ARE}"]),
        *broken_content,
        *_key_problems(keys, role),
        *broken_calls,
    ]
    if calls and role in ROLES and role != "assistant":
        problems.append(f'from "{role}" has tool_calls; only an assistant calls tools')
    known = (*KEYS.get(role, tuple(keys)), "tool_calls") if isinstance(role, str) else tuple(keys)
    unknown = [*unknown, *of_parts, *unknown_keys(keys, known, of="message")]
    return _MessageCheck(
        message=None if problems else _message(keys, role, content, calls),
        problems=[f"{message.location} {text}" for text in problems],
        unknown=[UnknownKey(where=key.where, text=f"{message.location} {key.text}") for key in unknown],
        calls=bool(calls),
    )


def _calls(message: RawMessage) -> tuple[list[Raw], list[UnknownKey]]:
    """Returns the calls in canonical form, those of OpenAI's key, and those of its older key."""
    legacy, given = message.keys.get("function_call"), message.keys.get("tool_calls")
    if not is_absent(legacy) and not is_absent(given):
        raise CallError("has both tool_calls and a function_call; give its calls once, as tool_calls")
    if message.role == "assistant" and not is_absent(legacy):
        given = legacy_calls_of(legacy)
    calls, unknown = ([], []) if is_absent(given) else calls_of(given)
    return [*message.calls, *calls], unknown


def _key_problems(keys: Raw, role: Any) -> Iterator[str]:
    broken = weight_problems(keys)
    yield from broken
    if role in ROLES and role != "assistant" and not broken and (key := asks_to_be_scored(keys)):
        yield f'from "{role}" has {key}: {keys[key]!r}; only what an assistant says is scored'
    for key in ("name", "tool_call_id"):
        if not isinstance(keys.get(key), str | None):
            yield f"has the {key} {keys[key]!r}; it must be a text"
    if role == "assistant":
        yield from filter(None, [reasoning_problem(reasoning_in(keys))])


def _message(keys: Raw, role: str, content: str, calls: Sequence[Raw]) -> Message:
    reasoning = reasoning_in(keys) if role == "assistant" else []
    return Message(
        role=cast(Role, role),
        content=content,
        loss_weight=weight_of(keys) if role == "assistant" else 1.0,
        tool_calls=tuple(calls),
        tool_call_id=keys.get("tool_call_id"),
        name=keys.get("name"),
        reasoning_content=reasoning[0] if reasoning else "",
    )
