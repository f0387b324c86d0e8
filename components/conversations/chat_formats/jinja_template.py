"""The chat format of any tokenizer with a chat template.

Targets are found by segments: the template is rendered up to the start and up to the end of each assistant turn. The span
between, including its stop token, is scored. Texts are never searched for in tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.canonical_tools import canonicalize
from components.conversations.chat_formats.control_tokens import AddedTokens, ControlTokenEncoder
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.template_date import pin_date
from components.conversations.chat_formats.template_renderer import (
    OWN_TEXT_KEYS,
    PROBE,
    AssistantSpan,
    TemplateRenderer,
    TemplateTokens,
    raw_message,
)
from components.conversations.chat_formats.tool_call_parser import learn_tool_calls
from components.conversations.messages import Conversation, Message
from components.errors import InputError
from components.experiment.spec import ChatFormatSpec

VERSION = 3  # raise it when a change here renders anything differently: it is part of the digest of prepared data


@dataclass(frozen=True, slots=True)
class _TemplateOutput:
    """The template's output. `mark` is inside every control text that messages contain; "" if there is none."""

    text: str
    mark: str
    spans: list[AssistantSpan]


class TemplateFormat:
    """Renders a Jinja chat template in transformers' sandbox. `template` has a fixed date if it writes the date."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, spec: ChatFormatSpec, *, name: str, template: str) -> None:
        """Raises InputError if the template cannot be trained on correctly; see _check_format."""
        self.tokenizer, self.name, self.template = tokenizer, name, pin_date(template, name)
        added = AddedTokens(tokenizer)
        self.renderer = TemplateRenderer(tokenizer, name=name, template=self.template, added=added)
        template_tokens = self.renderer.template_tokens()
        self.control = ControlTokenEncoder(
            tokenizer,
            added,
            template_tokens.anywhere,
            _forbidden_to_assistants(self.renderer, added, template_tokens),
        )
        stop_token_id = int(tokenizer.convert_tokens_to_ids(self.renderer.stop_text))
        self.stop_token_ids: tuple[int, ...] = (stop_token_id,)
        self.pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token_id)
        self._before, self._after = self._around_answer()
        self.calls = learn_tool_calls(
            lambda call: self._turn_text(Message(role="assistant", content="", tool_calls=(call,)))
        )
        self._check_format()

    def digest(self) -> str:
        # Templates refer to special tokens by their purpose: {{ bos_token }}.
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        hashed = hashlib.sha256(f"template {VERSION}\n{self.template}\n{self.pad_token_id}\n{special}\n".encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        hashed.update(vocabulary.encode())
        return hashed.hexdigest()

    def render(self, conversation: Conversation) -> RenderedConversation:
        source = conversation.source or "conversation"
        written = self._write(conversation.messages, conversation.tools, source)
        token_ids, ranges = self._encode(written, source)
        weights = [0.0] * len(token_ids)
        ends = []
        for span, (start, end) in zip(written.spans, ranges, strict=True):
            if span.weight > 0:
                weights[start:end] = [span.weight] * (end - start)
                ends.append(end)
        if not ends:
            raise InputError(f"{source}: no token is scored, so there is nothing to train on")
        return RenderedConversation(token_ids=tuple(token_ids), target_weights=tuple(weights), turn_ends=tuple(ends))

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        return self._encode(self._write(messages, tools, "prompt", ask=True), "prompt")[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        text = self.control.decode(token_ids)
        if self._before.startswith(text):
            return ""  # the answer's text has not begun
        return text.removeprefix(self._before).removesuffix(self._after)

    def words(self, token_ids: Sequence[int]) -> str:
        text = self.decode(token_ids)
        return self.calls.words(text) if self.calls else text

    def message(self, token_ids: Sequence[int]) -> Message:
        """Parses calls only if the template would render them as the same text."""
        words = Message(role="assistant", content=self.decode(token_ids))
        text = self.control.decode_all(token_ids)
        read = self.calls.read(text) if self.calls else None
        if read is None:
            return words
        before, calls = read
        before = before.removeprefix(self._before)
        for content in dict.fromkeys((before, before.removesuffix("\n"), before.rstrip())):
            message = Message(role="assistant", content=content, tool_calls=tuple(calls))
            if self._round_trip(message) == text:
                return message
        return words

    def _write(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: str, *, ask: bool = False
    ) -> _TemplateOutput:
        """Renders the template and finds the assistant's spans. `ask` ends the text at the start of the next answer."""
        messages, tools = canonicalize(messages, tools)
        raw, marked_tools, mark = self._mark(messages, tools, source)
        text = self.renderer.write(raw, marked_tools, source, ask=ask)
        if tools and text == self.renderer.write(raw, [], source, ask=ask):
            raise InputError(f"{source}: {self.renderer.limitation('does not show its tools', 'does')}")
        spans = [
            self.renderer.assistant_span(text, raw, marked_tools, position, message.loss_weight, source)
            for position, message in enumerate(messages)
            if message.role == "assistant"
        ]
        return _TemplateOutput(text, mark, spans)

    def _mark(
        self, messages: list[Message], tools: list[dict[str, Any]], source: str
    ) -> tuple[list[dict[str, Any]], list[Any], str]:
        """Returns messages and tools for the template, with the mark in their control texts, and the mark."""
        raw = [raw_message(message) for message in messages]
        own = [
            {key: message[key] for key in OWN_TEXT_KEYS if key in message} if message["role"] == "assistant" else {}
            for message in raw
        ]
        own, (raw, tools), mark = self.control.mark(own, (raw, tools), source)
        return [{**message, **texts} for message, texts in zip(raw, own, strict=True)], tools, mark

    def _encode(self, written: _TemplateOutput, source: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns token ids, and for each span the numbers of tokens before its start and before its end.

        At the start of a span the text before it is tokenized without the text after it, as in a prompt, and these tokens
        do not change later. Therefore a prompt's tokens are a prefix of the whole conversation's, even if the tokenizer
        would merge across the start. All other text is tokenized as by the model's own tooling. It need not be tokenized
        from the beginning, because no token crosses a stop token.
        """
        ids: list[int] = []
        ranges = []
        begin = kept = 0  # the text from `begin` on is still to be tokenized; ids[:kept] are the tokens before it
        for span in written.spans:
            prompt_ids = self._ids(written, begin, span.start, source)
            turn_ids = self._ids(written, begin, span.end, source)
            if turn_ids[: len(prompt_ids)] != prompt_ids:
                turn_ids = prompt_ids + self._encode_continuation(written, prompt_ids, turn_ids, span, source)
            ranges.append((kept + len(prompt_ids), kept + len(turn_ids)))
            ids = ids[:kept] + turn_ids
            begin, kept = span.stop, len(ids) - 1
        return ids[:kept] + self._ids(written, begin, len(written.text), source), ranges

    def _encode_continuation(
        self, written: _TemplateOutput, prompt_ids: list[int], turn_ids: list[int], span: AssistantSpan, source: str
    ) -> list[int]:
        """Returns the tokens of a span after those of its prompt.

        Many tokenizers add a blank before a text that is encoded alone, or that follows a special token. So the span is
        encoded after each of two texts with which nothing merges; the tokens that decode to the same text are returned.
        """
        wanted = self.control.decode_all(turn_ids)
        alone = self._ids(written, span.start, span.end, source)
        for before in (self.renderer.stop_text, "\n"):
            text = _TemplateOutput(before + written.text[span.start : span.end], written.mark, [])
            lead_ids, ids = self.control.encode(before, ""), self._ids(text, 0, len(text.text), source)
            if (
                ids[: len(lead_ids)] == lead_ids
                and self.control.decode_all(prompt_ids + ids[len(lead_ids) :]) == wanted
            ):
                return ids[len(lead_ids) :]
        return alone

    def _ids(self, written: _TemplateOutput, start: int, end: int, source: str) -> list[int]:
        try:
            return self.control.encode(written.text[start:end], written.mark)
        except ValueError as error:
            raise InputError(f"{source}: {error}") from None

    def _round_trip(self, message: Message) -> str | None:
        """Returns the text of a message's tokens; None if the template refuses the message."""
        try:
            return self.control.decode_all(self._answer_ids(message))
        except ValueError:
            return None

    def _answer_ids(self, message: Message) -> list[int]:
        """Returns the tokens of an answer, without its stop."""
        ids, ((start, end),) = self._encode(self._write([PROBE[0], message], (), "answer"), "answer")
        return ids[start : end - 1]

    def _around_answer(self) -> tuple[str, str]:
        """Returns what the template writes between a prompt and an answer, and between the answer and its stop, decoded."""
        before, found, after = self.control.decode(self._answer_ids(PROBE[1])).partition(PROBE[1].content)
        return (before, after) if found else ("", "")

    def _turn_text(self, message: Message) -> str:
        written = self._write([PROBE[0], message], (), "a trial conversation")
        (span,) = written.spans
        return written.text[span.start : span.stop]

    def _check_format(self) -> None:
        """Renders a trial conversation. Raises InputError unless prompts are prefixes of it and every stop is scored."""
        rendered = self.render(Conversation(messages=PROBE, source=f"chat_format {self.name}"))
        for position in (1, 3):
            prompt = self.prompt(PROBE[:position])
            if list(rendered.token_ids[: len(prompt)]) != prompt:
                raise InputError(
                    f"chat_format {self.name}: the prompt before message {position + 1} is no prefix of the whole"
                    " conversation; chat_format: chatml has one that is"
                )
        for end in rendered.turn_ends:
            if rendered.token_ids[end - 1] not in self.stop_token_ids or not rendered.target_weights[end - 1] > 0:
                raise InputError(f"chat_format {self.name}: the stop token {self.renderer.stop_text} is not scored")


def _forbidden_to_assistants(renderer: TemplateRenderer, added: AddedTokens, tokens: TemplateTokens) -> set[str]:
    """Returns the control texts that an assistant's text must not contain as tokens.

    Allowed are those inside the assistant's own turns, and special tokens without a purpose that the template never uses.
    """
    known = {text for text in added.special if text in tokens.anywhere or text in renderer.template}
    return {renderer.stop_text} | tokens.begins | added.with_purpose | (known - tokens.inside)
