"""Converts ChatGLM3's own messages to OpenAI's form: the tool messages of its training data, and its histories.

Its fine-tuning data has one message for a call and its result, {"role": "tool", "name", "parameters", "observation"}.
Its histories have an assistant message whose "metadata" names the tool and whose content is the code of the call, then an
"observation". In both, a thought is a separate assistant message before the call: the two become one turn.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from components.conversations.readers.loss_weights import LOSS_KEYS
from components.conversations.readers.message_forms import one_turn
from components.conversations.readers.raw_message import RawMessage, RecordFormatError

OBSERVATION = "observation"  # the role of a result in its histories
OWN_KEYS = {"parameters", "observation"}


def to_openai_messages(messages: Sequence[RawMessage], tools: Collection[str]) -> list[RawMessage]:
    """Converts messages; `tools` are the names of the record's tools. Raises RecordFormatError if a call names no tool."""
    read: list[RawMessage] = []
    for position, message in enumerate(messages):
        after = _role_as_written(messages[position + 1]) if position + 1 < len(messages) else None
        if _is_own_tool_message(message):
            call, result = _call_and_result(message)
            read = [*_append_call(read, call), result]
        elif _is_call(message, tools, after):
            read = _append_call(read, _call(message))
        else:
            read.append(message)
    return read


def are_free_form(tools: Any, messages: Sequence[RawMessage]) -> bool:
    """Whether tools are free-form descriptions instead of schemas, as ChatGLM3's training data may have them."""
    schemas = isinstance(tools, str) or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))
    return bool(tools) and not schemas and any(map(_is_own_tool_message, messages))


def describe_tools(messages: Sequence[RawMessage], tools: Any) -> list[RawMessage]:
    """Adds free-form descriptions to the system message, as ChatGLM3's code does."""
    from components.conversations.chat_formats.chatglm3 import TOOLS_INTRODUCTION

    given = bool(messages) and messages[0].role == "system"
    system = messages[0] if given else RawMessage(location="the tools", keys={"role": "system"})
    introduction = system.keys.get("content", TOOLS_INTRODUCTION)
    described = f"{introduction}\n{json.dumps(tools, indent=4, ensure_ascii=False)}"
    return [system.with_keys(content=described), *messages[1 if given else 0 :]]


def _is_own_tool_message(message: RawMessage) -> bool:
    return message.role == "tool" and _role_as_written(message) != OBSERVATION and not OWN_KEYS.isdisjoint(message.keys)


def _role_as_written(message: RawMessage) -> str:
    return str(message.keys.get("role")).lower()


def _call_and_result(message: RawMessage) -> tuple[RawMessage, RawMessage]:
    keys = dict(message.keys)
    name, arguments, result = keys.get("name"), keys.pop("parameters", None), keys.pop("observation", None)
    if not (isinstance(name, str) and name):
        raise RecordFormatError(f'{message.location} has parameters or an observation, but no "name" of a tool')
    if keys.pop("content", None) is not None:
        raise RecordFormatError(
            f"{message.location} has both a content and an observation; the observation is its content"
        )
    scored = {key: keys.pop(key) for key in LOSS_KEYS if key in keys}
    called = {"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}], **scored}
    return (
        RawMessage(location=message.location, keys=called),
        RawMessage(location=message.location, keys={**keys, "content": result}),
    )


def _is_call(message: RawMessage, tools: Collection[str], after: Any) -> bool:
    """Whether its metadata names a tool: one of the record's, or any tool if the record lists none and a result follows."""
    name, content = message.keys.get("metadata"), message.keys.get("content")
    if message.role != "assistant" or not (isinstance(name, str) and name and isinstance(content, str)):
        return False
    # Imported late: chat formats import transformers, which takes seconds and is not needed for most data.
    from components.conversations.chat_formats.chatglm3_tool_calls import INTERPRETER

    return name in tools or name == INTERPRETER or (not tools and after == OBSERVATION)


def _call(message: RawMessage) -> RawMessage:
    from components.conversations.chat_formats.chatglm3_tool_calls import call_of

    keys = {key: value for key, value in message.keys.items() if key not in ("metadata", "content")}
    call = call_of(message.keys["metadata"], message.keys["content"])
    return RawMessage(location=message.location, keys=keys, calls=(call,))


def _append_call(read: list[RawMessage], call: RawMessage) -> list[RawMessage]:
    """Appends a call; it becomes part of the thought before it, if there is one."""
    thought = read[-1] if read else None
    if thought is None or thought.role != "assistant" or thought.has_calls:
        return [*read, call]
    return [*read[:-1], one_turn(thought, call)]
