"""What a chat template wants messages to look like: under which keys, and in which of several forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.conversations.chat_formats.template_probes import CALLING, PROBE_CALL, THINKING
from components.conversations.messages import Message
from components.errors import InputError

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
INLINE = "content"  # the key of reasoning that is written at the head of the content
Raw = dict[str, Any]
Write = Callable[[Sequence[Raw]], str]  # raises InputError where the template refuses messages


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateDialect:
    """`reasoning_key` is None if the template shows no reasoning. `arguments` are those of calls: an object, or JSON text."""

    reasoning_key: str | None = None
    arguments: Literal["object", "text"] = "object"

    def raw(self, message: Message) -> Raw:
        """Returns a message as a dict for the template."""
        optional: Raw = {
            "tool_calls": [self._call(call) for call in message.tool_calls],
            "tool_call_id": message.tool_call_id,
            "name": message.name,
        }
        content, thought = message.content, message.reasoning_content
        if self.reasoning_key == INLINE and thought:
            content = f"<think>\n{thought}\n</think>\n\n{content}"
        else:
            optional[self.reasoning_key or REASONING_KEYS[0]] = thought
        required = {"role": message.role, "content": content}
        return required | {key: value for key, value in optional.items() if value}

    def _call(self, call: Raw) -> Raw:
        arguments = call["function"]["arguments"]
        if self.arguments == "object" or isinstance(arguments, str):
            return call
        return {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}


def learn_dialect(write: Write, template: str) -> TemplateDialect:
    """Tries each form, and keeps what the template shows."""
    return TemplateDialect(
        reasoning_key=_reasoning_key(write, template), arguments="text" if _wants_text(write) else "object"
    )


def _reasoning_key(write: Write, template: str) -> str | None:
    """Returns the first key under which the newest message's reasoning is shown."""
    (thought,) = (message.reasoning_content for message in THINKING if message.reasoning_content)
    # A template that does not know the tag shows it as any other text: then it is content, and stays so.
    for key in (*REASONING_KEYS, *([INLINE] if "</think>" in template else [])):
        dialect = TemplateDialect(reasoning_key=key)
        if thought in (_written(write, dialect, THINKING) or ""):
            return key
    return None


def _wants_text(write: Write) -> bool:
    """Whether calls can only be rendered with arguments as JSON text, or are JSON only then: Python's own form is none."""
    value = PROBE_CALL["function"]["arguments"]
    as_object = _written(write, TemplateDialect(arguments="object"), CALLING[:2])
    as_text = _written(write, TemplateDialect(arguments="text"), CALLING[:2])
    if as_text is None or json.dumps(value) not in as_text:
        return False
    return as_object is None or (json.dumps(value) not in as_object and repr(value) in as_object)


def _written(write: Write, dialect: TemplateDialect, messages: Sequence[Message]) -> str | None:
    try:
        return write([dialect.raw(message) for message in messages])
    except InputError:
        return None
