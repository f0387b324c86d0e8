"""ChatGLM3's own messages in OpenAI's words: its training data's tool messages, and the histories of its code.

Its fine-tuning data has one message for a call and its result, {"role": "tool", "name", "parameters", "observation"};
its histories have an assistant message whose "metadata" names the tool and whose content is the code of the call, then
an "observation". In both a thought is an assistant message of its own before the call: the two are one turn.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from components.conversations.readers.loss_weights import LOSS_KEYS, broken_weights, weight_of
from components.conversations.readers.raw_message import RawMessage, RecordFormatError

ROLES = {"observation": "tool", "function": "tool"}  # the second is OpenAI's older word
OWN_KEYS = {"parameters", "observation"}
CALL_KEYS = ("tool_calls", "function_call")


def in_openai_words(messages: Sequence[RawMessage], tools: Collection[str]) -> list[RawMessage]:
    """`tools` are the names of the record's tools. Raises RecordFormatError for a tool message that names none."""
    read: list[RawMessage] = []
    for position, message in enumerate(messages):
        after = messages[position + 1].role if position + 1 < len(messages) else None
        if _is_own_tool_message(message):
            call, result = _call_and_result(message)
            read = [*_with_call(read, call), result]
        elif _is_call(message, tools, after):
            read = _with_call(read, _call(message))
        else:
            ours = ROLES.get(str(message.role))
            read.append(message.with_keys(role=ours) if ours else message)
    return read


def are_described(tools: Any, messages: Sequence[RawMessage]) -> bool:
    """Whether they are no schemas but descriptions in a form of one's own, as ChatGLM3's training data may have them."""
    schemas = isinstance(tools, str) or (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools))
    return bool(tools) and not schemas and any(map(_is_own_tool_message, messages))


def with_described_tools(messages: Sequence[RawMessage], tools: Any) -> list[RawMessage]:
    """The descriptions in the system message, where ChatGLM3's code writes them."""
    from components.conversations.chat_formats.chatglm3 import TOOLS_INTRODUCTION

    given = bool(messages) and messages[0].role == "system"
    system = messages[0] if given else RawMessage(place="the tools", keys={"role": "system"})
    introduction = system.keys.get("content", TOOLS_INTRODUCTION)
    described = f"{introduction}\n{json.dumps(tools, indent=4, ensure_ascii=False)}"
    return [system.with_keys(content=described), *messages[1 if given else 0 :]]


def _is_own_tool_message(message: RawMessage) -> bool:
    return message.role == "tool" and not OWN_KEYS.isdisjoint(message.keys)


def _call_and_result(message: RawMessage) -> tuple[RawMessage, RawMessage]:
    keys = dict(message.keys)
    name, arguments, result = keys.get("name"), keys.pop("parameters", None), keys.pop("observation", None)
    if not (isinstance(name, str) and name):
        raise RecordFormatError(f'{message.place} has parameters or an observation, but no "name" of a tool')
    if keys.pop("content", None) is not None:
        raise RecordFormatError(
            f"{message.place} has both a content and an observation; the observation is its content"
        )
    scored = {key: keys.pop(key) for key in LOSS_KEYS if key in keys}
    called = {"role": "assistant", "tool_calls": [{"name": name, "arguments": arguments}], **scored}
    return (
        RawMessage(place=message.place, keys=called),
        RawMessage(place=message.place, keys={**keys, "content": result}),
    )


def _is_call(message: RawMessage, tools: Collection[str], after: Any) -> bool:
    """Whether its metadata names a tool: one of the record's, or any if the record lists none and a result follows."""
    name, content = message.keys.get("metadata"), message.keys.get("content")
    if message.role != "assistant" or not (isinstance(name, str) and name and isinstance(content, str)):
        return False
    # Imported late: formats need transformers, whose seconds most who read data need not wait for.
    from components.conversations.chat_formats.chatglm3_tool_calls import INTERPRETER

    return name in tools or name == INTERPRETER or (not tools and after == "observation")


def _call(message: RawMessage) -> RawMessage:
    from components.conversations.chat_formats.chatglm3_tool_calls import call_of

    keys = {key: value for key, value in message.keys.items() if key not in ("metadata", "content")}
    call = call_of(message.keys["metadata"], message.keys["content"])
    return RawMessage(place=message.place, keys=keys, calls=(call,))


def _with_call(read: list[RawMessage], call: RawMessage) -> list[RawMessage]:
    """The call joins the thought before it, if there is one."""
    thought = read[-1] if read else None
    if thought is None or thought.role != "assistant" or thought.calls or any(map(thought.keys.get, CALL_KEYS)):
        return [*read, call]
    if not (broken_weights(thought.keys) or broken_weights(call.keys)) and weight_of(thought.keys) != weight_of(
        call.keys
    ):
        raise RecordFormatError(
            f"{thought.place} and the call in {call.place} are one turn of the assistant, but are scored otherwise; give"
            " both the same loss"
        )
    return [*read[:-1], RawMessage(place=thought.place, keys={**call.keys, **thought.keys}, calls=call.calls)]
