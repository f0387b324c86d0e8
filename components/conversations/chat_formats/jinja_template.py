"""The chat format of any tokenizer with a chat template.

Targets are found by segments: the template is rendered up to where each assistant turn begins and to where it ends, and
the stretch between, through its stop token, is what the model is scored on. Texts are never searched for in tokens.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.canonical_tools import canonical
from components.conversations.chat_formats.control_tokens import AddedTexts, ControlText
from components.conversations.chat_formats.pinned_date import pinned
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.chat_formats.template_spans import PROBE, SAID, Structure, TemplateText, Turn, raw_message
from components.conversations.chat_formats.tool_call_parser import written_calls
from components.conversations.messages import Conversation, Message

VERSION = 3  # raise it when a change here renders anything otherwise: prepared data is addressed by it


@dataclass(frozen=True, slots=True)
class _Text:
    """What the template made of messages. `mark` stands in it wherever people wrote a control text; "" if nowhere."""

    text: str
    mark: str
    turns: list[Turn]


class TemplateFormat:
    """Renders by a Jinja chat template, in transformers' sandbox. `template` is it, with a fixed date if it writes one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, template: str) -> None:
        """Raises ValueError unless the template is proven fit to train on; see _prove."""
        self.tokenizer, self.name, self.template = tokenizer, name, pinned(template, name)
        added = AddedTexts(tokenizer)
        self.writer = TemplateText(tokenizer, name=name, template=self.template, added=added)
        structure = self.writer.structure()
        self.control = ControlText(
            tokenizer, added, structure.anywhere, _not_an_assistants(self.writer, added, structure)
        )
        stop_token_id = int(tokenizer.convert_tokens_to_ids(self.writer.stop_text))
        self.stop_token_ids: tuple[int, ...] = (stop_token_id,)
        self.pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token_id)
        self._before, self._after = self._around_words()
        self.calls = written_calls(
            lambda call: self._turn_of(Message(role="assistant", content="", tool_calls=(call,)))
        )
        self._prove()

    def digest(self) -> str:
        # Templates write the special tokens by their role: {{ bos_token }}.
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        hashed = hashlib.sha256(f"template {VERSION}\n{self.template}\n{self.pad_token_id}\n{special}\n".encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        hashed.update(vocabulary.encode())
        return hashed.hexdigest()

    def render(self, conversation: Conversation) -> RenderedConversation:
        source = conversation.source or "conversation"
        written = self._write(conversation.messages, conversation.tools, source)
        token_ids, places = self._encode(written, source)
        weights = [0.0] * len(token_ids)
        ends = []
        for turn, (start, end) in zip(written.turns, places, strict=True):
            if turn.weight > 0:
                weights[start:end] = [turn.weight] * (end - start)
                ends.append(end)
        if not ends:
            raise ValueError(f"{source}: no token is scored, so there is nothing to train on")
        return RenderedConversation(token_ids=tuple(token_ids), target_weights=tuple(weights), turn_ends=tuple(ends))

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        return self._encode(self._write(messages, tools, "prompt", ask=True), "prompt")[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        text = self.control.decode(token_ids)
        if self._before.startswith(text):
            return ""  # not yet a word
        return text.removeprefix(self._before).removesuffix(self._after)

    def words(self, token_ids: Sequence[int]) -> str:
        text = self.decode(token_ids)
        return self.calls.words(text) if self.calls else text

    def message(self, token_ids: Sequence[int]) -> Message:
        """Calls are told apart if the template, given them, would write the same text."""
        words = Message(role="assistant", content=self.decode(token_ids))
        text = self.control.decode_all(token_ids)
        read = self.calls.read(text) if self.calls else None
        if read is None:
            return words
        before, calls = read
        before = before.removeprefix(self._before)
        for content in dict.fromkeys((before, before.removesuffix("\n"), before.rstrip())):
            message = Message(role="assistant", content=content, tool_calls=tuple(calls))
            if self._reads_as(message) == text:
                return message
        return words

    def _write(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: str, *, ask: bool = False
    ) -> _Text:
        """The template's text, with the stretches of it that are the assistant's. `ask` ends it where the next begins."""
        messages, tools = canonical(messages, tools)
        raw, marked_tools, mark = self._marked(messages, tools, source)
        text = self.writer.write(raw, marked_tools, source, ask=ask)
        if tools and text == self.writer.write(raw, [], source, ask=ask):
            raise ValueError(f"{source}: {self.writer.lacks('does not show its tools', 'does')}")
        turns = [
            self.writer.turn(text, raw, marked_tools, position, message.loss, source)
            for position, message in enumerate(messages)
            if message.role == "assistant"
        ]
        return _Text(text, mark, turns)

    def _marked(
        self, messages: list[Message], tools: list[dict[str, Any]], source: str
    ) -> tuple[list[dict[str, Any]], list[Any], str]:
        """Messages and tools as the template gets them, control texts in them broken up by the mark."""
        raw = [raw_message(message) for message in messages]
        said = [{key: one[key] for key in SAID if key in one} if one["role"] == "assistant" else {} for one in raw]
        said, (raw, tools), mark = self.control.marked(said, (raw, tools), source)
        return [{**one, **words} for one, words in zip(raw, said, strict=True)], tools, mark

    def _encode(self, written: _Text, source: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each turn how many of them lie before its start and before its end.

        Where a turn starts, the text before it is tokenized without a look at what follows, as it is when a prompt ends
        there; and what is settled stays so. Hence a prompt's tokens are a prefix of the whole conversation's, even where
        a tokenizer would rather merge across the start. Elsewhere the text is tokenized as the model's own tooling does:
        it need not be taken from the beginning, as no token reaches across a stop token.
        """
        ids: list[int] = []
        places = []
        begin = kept = 0  # the text from `begin` on is tokenized anew; ids[:kept] are of what lies before it
        for turn in written.turns:
            asked = self._ids(written, begin, turn.start, source)
            said = self._ids(written, begin, turn.end, source)
            if said[: len(asked)] != asked:
                said = asked + self._continued(written, asked, said, turn, source)
            places.append((kept + len(asked), kept + len(said)))
            ids = ids[:kept] + said
            begin, kept = turn.stop, len(ids) - 1
        return ids[:kept] + self._ids(written, begin, len(written.text), source), places

    def _continued(self, written: _Text, asked: list[int], said: list[int], turn: Turn, source: str) -> list[int]:
        """Tokens of a turn behind those of its prompt.

        Many tokenizers set a blank before a text that they are given alone, or before one behind a special token. So it is
        given to them behind each of two texts that nothing is merged with, and taken is what reads as the whole does.
        """
        wanted = self.control.decode_all(said)
        alone = self._ids(written, turn.start, turn.end, source)
        for before in (self.writer.stop_text, "\n"):
            text = _Text(before + written.text[turn.start : turn.end], written.mark, [])
            lead, both = self.control.encode(before, ""), self._ids(text, 0, len(text.text), source)
            if both[: len(lead)] == lead and self.control.decode_all(asked + both[len(lead) :]) == wanted:
                return both[len(lead) :]
        return alone

    def _ids(self, written: _Text, start: int, end: int, source: str) -> list[int]:
        try:
            return self.control.encode(written.text[start:end], written.mark)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def _reads_as(self, message: Message) -> str | None:
        """The text of a message's tokens; None if the template refuses it."""
        try:
            return self.control.decode_all(self._said(message))
        except ValueError:
            return None

    def _said(self, message: Message) -> list[int]:
        """The tokens of an answer, without its stop."""
        ids, ((start, end),) = self._encode(self._write([PROBE[0], message], (), "answer"), "answer")
        return ids[start : end - 1]

    def _around_words(self) -> tuple[str, str]:
        """What the template writes between a prompt and an answer's words, and between these and the stop, decoded."""
        before, found, after = self.control.decode(self._said(PROBE[1])).partition(PROBE[1].content)
        return (before, after) if found else ("", "")

    def _turn_of(self, message: Message) -> str:
        written = self._write([PROBE[0], message], (), "a trial conversation")
        (turn,) = written.turns
        return written.text[turn.start : turn.stop]

    def _prove(self) -> None:
        """Renders a trial conversation: prompts must be prefixes of it, and each stop must be scored, and nothing else."""
        rendered = self.render(Conversation(messages=PROBE, source=f"chat_format {self.name}"))
        for position in (1, 3):
            prompt = self.prompt(PROBE[:position])
            if list(rendered.token_ids[: len(prompt)]) != prompt:
                raise ValueError(
                    f"chat_format {self.name}: the prompt before message {position + 1} is no prefix of the whole"
                    " conversation; chat_format: chatml has one that is"
                )
        for end in rendered.turn_ends:
            if rendered.token_ids[end - 1] not in self.stop_token_ids or not rendered.target_weights[end - 1] > 0:
                raise ValueError(f"chat_format {self.name}: the stop token {self.writer.stop_text} is not scored")


def _not_an_assistants(writer: TemplateText, added: AddedTexts, structure: Structure) -> set[str]:
    """The control texts that an assistant may not write: what it may are those that its own turns are made of, and
    special ones without a duty, of which the template knows nothing."""
    known = {text for text in added.special if text in structure.anywhere or text in writer.template}
    return {writer.stop_text} | structure.begins | added.with_duty | (known - structure.inside)
