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

import jinja2
from transformers import PreTrainedTokenizerBase

from components.conversations.formats.control_text import ControlText
from components.conversations.messages import Conversation, Message, reasoning_is_not_shown
from components.conversations.rendered import RenderedConversation

VERSION = 2  # raise it when a change here renders anything otherwise: prepared data is addressed by it
PROBE = (
    Message(role="user", content="one"),
    Message(role="assistant", content="two"),
    Message(role="user", content=" three\n"),
    Message(role="assistant", content="four"),
)


@dataclass(frozen=True, slots=True)
class _Turn:
    """Characters [start, end) of a text: an assistant's words and the stop that ends them; `stop` is where that begins."""

    start: int
    stop: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class _Text:
    """What the template made of messages. `mark` stands in it wherever people wrote a control text; "" if nowhere."""

    text: str
    mark: str
    turns: list[_Turn]


class TemplateFormat:
    """Renders by a Jinja chat template, in transformers' sandbox."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, template: str) -> None:
        """Raises ValueError unless the template is proven fit to train on; see _prove."""
        self.tokenizer, self.name, self.template = tokenizer, name, template
        self.control = ControlText(tokenizer)
        self.stop_text = self._find_stop()
        stop_token_id = int(tokenizer.convert_tokens_to_ids(self.stop_text))
        self.stop_token_ids: tuple[int, ...] = (stop_token_id,)
        self.pad_token_id = int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token_id)
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
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def message(self, token_ids: Sequence[int]) -> Message:
        return Message(role="assistant", content=self.decode(token_ids))

    def _write(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], source: str, *, ask: bool = False
    ) -> _Text:
        """The template's text, with the stretches of it that are the assistant's. `ask` ends it where the next begins."""
        (contents, marked_tools), mark = self.control.marked([[_content(message) for message in messages], list(tools)])
        raw = [{"role": message.role, **content} for message, content in zip(messages, contents, strict=True)]
        text = self._text(raw, marked_tools, source, ask=ask)
        if tools and text == self._text(raw, [], source, ask=ask):
            raise ValueError(f"{source}: {self._lacks('does not show its tools', 'does')}")
        turns = [
            self._turn(text, raw, marked_tools, position, message.loss, source)
            for position, message in enumerate(messages)
            if message.role == "assistant"
        ]
        return _Text(text, mark, turns)

    def _turn(self, text: str, raw: list[Any], tools: list[Any], position: int, weight: float, source: str) -> _Turn:
        """Where message `position`, an assistant's, lies in the text."""
        number = position + 1
        asked = self._text(raw[:position], tools, source, ask=True)
        said = self._text(raw[:number], tools, source)
        if not (text.startswith(said) and said.startswith(asked)):
            raise ValueError(
                f"{source}: message {number} is rendered otherwise once the conversation goes on, so one pass over it is"
                f" not what the model sees in use; {self._lacks('cannot train this', 'can')}"
            )
        stop = said.rfind(self.stop_text, len(asked))
        if stop < 0:
            raise ValueError(f"{source}: no stop token {self.stop_text} ends message {number}")
        for words in _spoken(raw[position]):
            if words not in said[len(asked) : stop]:
                raise ValueError(f"{source}: message {number}: {self._lacks(f'does not show {words!r}', 'does')}")
        if raw[position].get("reasoning_content", "").strip() not in said[len(asked) : stop]:
            raise ValueError(f"{source}: message {number}: {reasoning_is_not_shown(self.name)}")
        return _Turn(len(asked), stop, stop + len(self.stop_text), weight)

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
            asked = self.control.encode(written.text[begin : turn.start], written.mark)
            said = self.control.encode(written.text[begin : turn.end], written.mark)
            if said[: len(asked)] != asked:
                said = asked + self.control.encode(written.text[turn.start : turn.end], written.mark)
            places.append((kept + len(asked), kept + len(said)))
            ids = ids[:kept] + said
            begin, kept = turn.stop, len(ids) - 1
        ids = ids[:kept] + self.control.encode(written.text[begin:], written.mark)
        if forged := self.control.forged(ids, written.text):
            raise ValueError(f"{source}: its text would become the control token {forged[0]}; write it otherwise")
        return ids, places

    def _text(self, messages: list[Any], tools: list[Any], source: str, *, ask: bool = False) -> str:
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages,
                    tools=tools or None,
                    chat_template=self.template,
                    add_generation_prompt=ask,
                    tokenize=False,
                )
            )
        except (jinja2.TemplateError, TypeError, KeyError) as error:
            raise ValueError(f"{source}: the chat template of {self.name} refuses it: {error}") from None

    def _lacks(self, what: str, chatml: str) -> str:
        way_out = "" if self.name == "chatml" else f", chat_format: chatml {chatml}"
        return f"chat_format {self.name} {what}{way_out}"

    def _find_stop(self) -> str:
        """The control token with which the template ends an assistant turn."""
        raw = [{"role": message.role, **_content(message)} for message in PROBE]
        said = self._text(raw, [], "a trial conversation")
        after = said[said.rfind(PROBE[-1].content) + len(PROBE[-1].content) :]
        for text in self.control.texts:
            if after.lstrip().startswith(text):
                return text
        raise ValueError(
            f"chat_format {self.name}: no stop token ends an assistant turn (after it comes {after!r}), so a model could not"
            " learn to end its turn; chat_format: chatml adds one"
        )

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
                raise ValueError(f"chat_format {self.name}: the stop token {self.stop_text} is not scored")


def _content(message: Message) -> dict[str, Any]:
    """A message as chat templates want it, without its role."""
    optional = {
        "tool_calls": list(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "name": message.name,
        "reasoning_content": message.reasoning_content,
    }
    return {"content": message.content} | {key: value for key, value in optional.items() if value}


def _spoken(raw: dict[str, Any]) -> list[str]:
    """What an assistant's turn must hold: its words, and the names of the functions it calls."""
    return [raw["content"].strip(), *(call["function"]["name"] for call in raw.get("tool_calls", []))]
