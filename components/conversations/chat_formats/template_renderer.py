"""Renders a Jinja chat template as text, and says why it refuses a conversation."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.chat_formats.bounded_template import (
    TemplateCall,
    TemplateRefusedError,
    UnboundedTemplateError,
    render_ahead,
    render_template,
)
from components.conversations.chat_formats.chatml import knows_chatml
from components.conversations.chat_formats.control_tokens import AddedTokens
from components.conversations.chat_formats.template_arguments import arguments_of
from components.conversations.chat_formats.template_dialect import Raw, with_inline_thought
from components.conversations.chat_formats.template_probes import PROBE, PROBE_CALL
from components.errors import InputError

CALL_NAME = str(PROBE_CALL["function"]["name"])
SWITCHES = ("enable_thinking", "thinking")  # arguments that switch reasoning off


class TemplateRenderer:
    """`templates` are the names of the tokenizer's templates, of which this is one.

    All methods that render raise UnboundedTemplateError for a template that does not end, or grows without bound.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        name: str,
        template: str,
        added: AddedTokens,
        templates: Sequence[str] = (),
        prepends_system: bool = False,
    ) -> None:
        self.tokenizer, self.name, self.template, self.added = tokenizer, name, template, added
        self.templates, self.prepends_system = templates, prepends_system
        self.calls_alone = self.inline_thoughts = False
        self.write_ahead(())
        self._special = {
            name: list(map(str, token)) if isinstance(token, list | tuple) else str(token)
            for name, token in tokenizer.special_tokens_map.items()
        }
        # Templates of models for images read content as a list of parts.
        self.takes_parts = not self._shows_words(parts=False) and self._shows_words(parts=True)
        # Some write calls only where a message has no content at all.
        self.calls_alone = not self._shows_call(alone=False) and self._shows_call(alone=True)

    def write(self, raw: Sequence[Raw], tools: list[Any], source: str, *, ask: bool = False) -> str:
        """Renders messages and tools. `ask` ends the text at the start of the assistant's next turn."""
        try:
            return self._render(raw, tools, ask)
        except UnboundedTemplateError as error:
            raise UnboundedTemplateError(f"{source}: {error}") from None
        except TemplateRefusedError as error:
            raise InputError(self._refusal(raw, tools, ask, source, error)) from None

    def write_ahead(self, calls: Sequence[TemplateCall]) -> list[str | None]:
        """Renders what will be asked for: `write` has these texts at hand, until others are rendered ahead.

        Returns the text of each call; None for one that `write` must be asked for.

        A call is known by its messages themselves, not by what they say: they must not change.
        """
        shapes = {id(message): self._shape(message) for call in calls for message in call.messages}
        shaped = [call._replace(messages=[shapes[id(message)] for message in call.messages]) for call in calls]
        texts = render_ahead(self.template, shaped, self._special) if calls else []
        self._calls_ahead = calls  # as long as they are here, nothing else has their identity
        self._texts_ahead = {
            _identity(*call): text for call, text in zip(calls, texts, strict=True) if text is not None
        }
        return texts

    def limitation(self, what: str, chatml: str = "") -> str:
        """Returns what the format cannot do; `chatml` is how ChatML can, if this tokenizer has its tokens."""
        way_out = f", chat_format: chatml {chatml}" if chatml and self.offers_chatml() else ""
        return f"chat_format {self.name} {what}{way_out}"

    def hides_tools(self) -> str:
        """Returns the problem of tools that the template does not show."""
        others = [name for name in self.templates if "tool" in name]
        if others:
            return f"chat_format {self.name} does not show its tools, chat_template: {others[0]} does"
        return self.limitation("does not show its tools", "does")

    def hides_system(self) -> str:
        return (
            f"chat_format {self.name} does not show its system message; data.system: prepend writes it at the head of the"
            " first question"
        )

    def way_without_thoughts(self) -> str:
        """Returns the argument that switches reasoning off, as advice; "" if the template has none."""
        return self._switch("false")

    def way_with_thoughts(self) -> str:
        return self._switch("true")

    def _switch(self, value: str) -> str:
        read = arguments_of(self.template, self.name)
        switch = next((name for name in SWITCHES if name in read), None)
        return f", or set chat_template_arguments: {{{switch}: {value}}}" if switch else ""

    def _shows_words(self, *, parts: bool) -> bool:
        """Whether a question's words are in its rendering, given as a text or as parts."""
        self.takes_parts = parts
        try:
            return PROBE[0].content in self._render([{"role": "user", "content": PROBE[0].content}], [], ask=True)
        except TemplateRefusedError:
            return False

    def _shows_call(self, *, alone: bool) -> bool:
        """Whether a call's name is in its rendering, beside an empty content or none."""
        self.calls_alone = alone
        forms: tuple[Raw | str, ...] = ({}, "{}")
        for arguments in forms:
            call = {"type": "function", "function": {"name": CALL_NAME, "arguments": arguments}}
            messages: list[Raw] = [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
            ]
            with contextlib.suppress(TemplateRefusedError):
                if CALL_NAME in self._render(messages, [], ask=False):
                    return True
        return False

    def _shape(self, message: Raw) -> Raw:
        """Returns a message with its content in the form that the template reads."""
        if self.inline_thoughts:
            message = with_inline_thought(message)
        if self.calls_alone and message.get("tool_calls") and not message["content"].strip():
            return {**message, "content": None}
        return {**message, "content": [{"type": "text", "text": message["content"]}]} if self.takes_parts else message

    def _render(self, raw: Sequence[Raw], tools: list[Any], ask: bool) -> str:
        if (ahead := self._texts_ahead.get(_identity(raw, tools, ask))) is not None:
            return ahead
        messages = [self._shape(message) for message in raw]
        try:
            return render_template(self.template, messages, tools, ask=ask, special=self._special)
        except UnboundedTemplateError as error:
            way_out = "set chat_format: chatml" if self.offers_chatml() else "take another model, or mend its template"
            raise UnboundedTemplateError(f"chat_format {self.name}: the chat template {error}; {way_out}") from None

    def _refusal(self, raw: Sequence[Raw], tools: list[Any], ask: bool, source: str, error: Exception) -> str:
        said = f"{source}: the chat template of {self.name} refuses it: {error}"
        systems = [number for number, message in enumerate(raw, start=1) if message["role"] == "system"]
        others = [message for message in raw if message["role"] != "system"]
        if not self.prepends_system and self._takes(others, raw, tools, ask):
            return (
                f"{source}: message {systems[0]} is from the system, and the chat template of {self.name} has no such role"
                f" ({error}); data.system: prepend writes it at the head of the first question"
            )
        if pair := _same_role_twice(raw):
            return f"{said}; messages {pair} and {pair + 1} are both from the {raw[pair]['role']}: make them one"
        return said

    def _takes(self, raw: Sequence[Raw], refused: Sequence[Raw], tools: list[Any], ask: bool) -> bool:
        if len(raw) == len(refused) or not raw:
            return False
        try:
            self._render(raw, tools, ask)
        except TemplateRefusedError:
            return False
        return True

    def offers_chatml(self) -> bool:
        return self.name != "chatml" and knows_chatml(self.tokenizer)


def _identity(messages: Sequence[Raw], tools: Sequence[Any], ask: bool) -> tuple[tuple[int, ...], bool, bool]:
    return tuple(map(id, messages)), bool(tools), ask


def _same_role_twice(raw: Sequence[Raw]) -> int:
    """Returns the number of the first of two messages in a row from one role, tools left out; 0 if there are none."""
    pairs = enumerate(itertools.pairwise(raw), start=1)
    return next((n for n, (one, other) in pairs if one["role"] == other["role"] != "tool"), 0)
