"""What a chat template wants messages to look like: under which keys, and in which of several forms."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.conversations.chat_formats.template_probes import CALLING, PROBE_CALL, THINKING
from components.conversations.messages import REASONING_KEYS, Message
from components.errors import InputError

Raw = dict[str, Any]
Write = Callable[[Sequence[Raw]], str]  # raises InputError where the template refuses messages


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateDialect:
    """`reasoning_key` is None if the template shows no reasoning; `inline`: it reads it at the head of the content only.

    `arguments` are those of calls: an object, or JSON text.
    """

    reasoning_key: str | None = None
    inline: bool = False
    arguments: Literal["object", "text"] = "object"

    def raw(self, message: Message) -> Raw:
        """Returns a message as a dict for the template."""
        optional = {
            "tool_calls": [self._call(call) for call in message.tool_calls],
            "tool_call_id": message.tool_call_id,
            "name": message.name,
            self.reasoning_key or REASONING_KEYS[0]: message.reasoning_content,
        }
        required = {"role": message.role, "content": message.content}
        return required | {key: value for key, value in optional.items() if value}

    def _call(self, call: Raw) -> Raw:
        arguments = call["function"]["arguments"]
        if self.arguments == "object" or isinstance(arguments, str):
            return call
        return {**call, "function": {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}}


def learn_dialect(write: Write, template: str) -> TemplateDialect:
    """Tries each form, and keeps what the template shows."""
    arguments: Literal["object", "text"] = "text" if _wants_text(write) else "object"
    (thought,) = (message.reasoning_content for message in THINKING if message.reasoning_content)
    for key in REASONING_KEYS:
        dialect = TemplateDialect(reasoning_key=key, arguments=arguments)
        if thought in (_written(write, dialect, THINKING) or ""):
            return dialect
    # A template that does not know the tag shows it as any other text: then it is content, and stays so.
    inline = "</think>" in template and thought in (_written(write, TemplateDialect(inline=True), THINKING) or "")
    return TemplateDialect(reasoning_key=REASONING_KEYS[0] if inline else None, inline=inline, arguments=arguments)


def with_inline_thought(message: Raw) -> Raw:
    """Returns a message with its reasoning at the head of its content."""
    thought = message.get(REASONING_KEYS[0])
    if not thought:
        return message
    rest = {key: value for key, value in message.items() if key != REASONING_KEYS[0]}
    return {**rest, "content": f"<think>\n{thought}\n</think>\n\n{message['content']}"}


def _wants_text(write: Write) -> bool:
    """Whether calls can only be rendered with arguments as JSON text, or are JSON only then: Python's own form is none."""
    value = PROBE_CALL["function"]["arguments"]
    as_object = _written(write, TemplateDialect(arguments="object"), CALLING[:2])
    as_text = _written(write, TemplateDialect(arguments="text"), CALLING[:2])
    if as_text is None or json.dumps(value) not in as_text:
        return False
    return as_object is None or (json.dumps(value) not in as_object and repr(value) in as_object)


def _written(write: Write, dialect: TemplateDialect, messages: Sequence[Message]) -> str | None:
    raw = [dialect.raw(message) for message in messages]
    try:
        return write([with_inline_thought(message) for message in raw] if dialect.inline else raw)
    except InputError:
        return None
