"""Renders a Jinja chat template as text, and finds the spans of the assistant in it.

Spans are found by segments: the template is rendered up to the start and up to the end of each assistant turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.control_tokens import AddedTokens
from components.conversations.messages import Message, hidden_reasoning_problem
from components.errors import InputError

OWN_TEXT_KEYS = ("content", "reasoning_content")  # the keys of an assistant's own text
PROBE = (
    Message(role="user", content="one"),
    Message(role="assistant", content="two"),
    Message(role="user", content=" three\n"),
    Message(role="assistant", content="four"),
)
PROBE_TOOL: dict[str, Any] = {"type": "function", "function": {"name": "probe", "parameters": {"type": "object"}}}
PROBE_CALL: dict[str, Any] = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "probe", "arguments": {"key": "value"}},
}
_SYSTEM = Message(role="system", content="zero")
_CALLING = (
    PROBE[0],
    Message(role="assistant", content="", tool_calls=(PROBE_CALL,)),
    Message(role="tool", content="five", tool_call_id="call00001", name="probe"),
    PROBE[3],
)
# A template may refuse or ignore some of them.
PROBES: tuple[tuple[tuple[Message, ...], list[dict[str, Any]]], ...] = (
    (PROBE, []),
    ((_SYSTEM, *PROBE), []),
    (_CALLING, []),
    (_CALLING, [PROBE_TOOL]),
    ((PROBE[0], Message(role="assistant", content="two", reasoning_content="six")), []),
    ((_SYSTEM, *_CALLING), [PROBE_TOOL]),
)


@dataclass(frozen=True, slots=True)
class AssistantSpan:
    """Characters [start, end) of a text: an assistant's turn with its stop text, which begins at `stop`."""

    start: int
    stop: int
    end: int
    weight: float


@dataclass(slots=True)
class TemplateTokens:
    """The added tokens that a template writes itself: at the start of a role, inside assistant turns, and anywhere."""

    begins: set[str] = field(default_factory=set)
    inside: set[str] = field(default_factory=set)
    anywhere: set[str] = field(default_factory=set)


class TemplateRenderer:
    """`stop_text` is the control text with which the template ends an assistant turn. Raises InputError if there is none."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, template: str, added: AddedTokens) -> None:
        self.tokenizer, self.name, self.template, self.added = tokenizer, name, template, added
        self.stop_text = self._find_stop()

    def write(self, raw: Sequence[dict[str, Any]], tools: list[Any], source: str, *, ask: bool = False) -> str:
        """Renders messages and tools. `ask` ends the text at the start of the assistant's next turn."""
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    list(raw),
                    tools=tools or None,
                    chat_template=self.template,
                    add_generation_prompt=ask,
                    tokenize=False,
                )
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise InputError(f"{source}: the chat template of {self.name} refuses it: {error}") from None

    def assistant_span(
        self, text: str, raw: Sequence[dict[str, Any]], tools: list[Any], position: int, weight: float, source: str
    ) -> AssistantSpan:
        """Returns the span of message `position`, an assistant's, in the text."""
        number = position + 1
        prompt = self.write(raw[:position], tools, source, ask=True)
        whole = self.write(raw[:number], tools, source)
        if not (text.startswith(whole) and whole.startswith(prompt)):
            raise InputError(
                f"{source}: message {number} is rendered otherwise once the conversation goes on, so one pass over it is"
                f" not what the model sees in use; {self.limitation('cannot train this', 'can')}"
            )
        stop = whole.rfind(self.stop_text, len(prompt))
        if stop < 0:
            raise InputError(f"{source}: no stop token {self.stop_text} ends message {number}")
        for words in _required_texts(raw[position]):
            if words not in whole[len(prompt) : stop]:
                raise InputError(f"{source}: message {number}: {self.limitation(f'does not show {words!r}', 'does')}")
        if raw[position].get("reasoning_content", "").strip() not in whole[len(prompt) : stop]:
            raise InputError(f"{source}: message {number}: {hidden_reasoning_problem(self.name)}")
        return AssistantSpan(len(prompt), stop, stop + len(self.stop_text), weight)

    def template_tokens(self) -> TemplateTokens:
        """Renders trial conversations, whose messages contain no added token, and collects the added tokens in the text."""
        found = TemplateTokens()
        for messages, tools in PROBES:
            try:
                self._add_tokens(found, [raw_message(message) for message in messages], tools)
            except ValueError:
                continue
        return found

    def limitation(self, what: str, chatml: str) -> str:
        way_out = "" if self.name == "chatml" else f", chat_format: chatml {chatml}"
        return f"chat_format {self.name} {what}{way_out}"

    def _add_tokens(self, found: TemplateTokens, raw: list[dict[str, Any]], tools: list[Any]) -> None:
        source = "a trial conversation"
        text = self.write(raw, tools, source)
        found.anywhere |= self.added.find(text)
        found.begins |= {token for token in self.added.texts if text.lstrip().startswith(token)}
        ended = 0  # the end of the assistant's last span
        for position, message in enumerate(raw):
            if message["role"] == "assistant":
                span = self.assistant_span(text, raw, tools, position, 1.0, source)
                before = self.write(raw[:position], tools, source)
                found.begins |= self.added.find(text[len(before) : span.start])
                found.inside |= self.added.find(text[span.start : span.stop])
                ended = span.end
            elif ended:
                found.begins |= self.added.find(text[ended : text.find(message["content"].strip(), ended)])

    def _find_stop(self) -> str:
        text = self.write([raw_message(message) for message in PROBE], [], "a trial conversation")
        after = text[text.rfind(PROBE[-1].content) + len(PROBE[-1].content) :]
        for stop in self.added.texts:
            if after.lstrip().startswith(stop):
                return stop
        raise InputError(
            f"chat_format {self.name}: no stop token ends an assistant turn (after it comes {after!r}), so a model could not"
            " learn to end its turn; chat_format: chatml adds one"
        )


def raw_message(message: Message) -> dict[str, Any]:
    """Returns a message as a dict for chat templates."""
    optional = {
        "tool_calls": list(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning_content,
    }
    required = {"role": message.role, "content": message.content}
    return required | {key: value for key, value in optional.items() if value}


def _required_texts(raw: dict[str, Any]) -> list[str]:
    """Returns what an assistant's span must contain: its text, and the names of the functions it calls."""
    return [raw["content"].strip(), *(call["function"]["name"] for call in raw.get("tool_calls", []))]
