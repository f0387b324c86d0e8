"""The chat format of any tokenizer with a chat template; ChatML where there is none.

Targets are found by segments: the template is rendered up to where each assistant turn begins and to where it ends, and
the stretch between, through its stop token, is what the model is scored on. Texts are never searched for in tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from components.conversations.formats.control_text import ControlText
from components.conversations.messages import Conversation, Message
from components.conversations.rendered import RenderedConversation

VERSION = 1  # raise it when a change here renders anything otherwise: prepared data is addressed by it
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] + '\\n' + message['content'] + STOP + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PROBE = (
    Message(role="user", content="one"),
    Message(role="assistant", content="two"),
    Message(role="user", content=" three\n"),
    Message(role="assistant", content="four"),
)


@dataclass(frozen=True, slots=True)
class _Turn:
    """Characters [start, end) of the rendered text: an assistant's words and the stop that ends them."""

    start: int
    end: int
    weight: float


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
        hashed = hashlib.sha256(f"template {VERSION}\n{self.template}\n{self.pad_token_id}\n".encode())
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        vocabulary = backend.to_str() if backend is not None else repr(sorted(self.tokenizer.get_vocab().items()))
        hashed.update(vocabulary.encode())
        return hashed.hexdigest()

    def render(self, conversation: Conversation) -> RenderedConversation:
        plain = [[_as_dict(message) for message in conversation.messages], list(conversation.tools)]
        (messages, tools), mark = self.control.marked(plain)
        text, turns = self._turns(conversation, messages, tools)
        return self._scored(conversation, text, turns, mark)

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        plain = [[_as_dict(message) for message in messages], list(tools)]
        (marked, marked_tools), mark = self.control.marked(plain)
        text = self._text(marked, marked_tools, "prompt", ask=True)
        return self._encode(text, mark, [])[0]

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _turns(self, conversation: Conversation, messages: list[Any], tools: list[Any]) -> tuple[str, list[_Turn]]:
        """The whole text, and the stretches of it that are the assistant's."""
        source = conversation.source or "conversation"
        text = self._text(messages, tools, source)
        turns = []
        for position, message in enumerate(conversation.messages):
            if message.role != "assistant":
                continue
            asked = self._text(messages[:position], tools, source, ask=True)
            said = self._text(messages[: position + 1], tools, source)
            if not (text.startswith(said) and said.startswith(asked)):
                raise ValueError(
                    f"{source}: message {position + 1} is rendered otherwise once the conversation goes on, so one pass over"
                    f" it is not what the model sees in use; chat_format {self.name} cannot train this,"
                    " chat_format: chatml can"
                )
            stop = said.rfind(self.stop_text, len(asked))
            if stop < 0:
                raise ValueError(f"{source}: no stop token {self.stop_text} ends message {position + 1}")
            turns.append(_Turn(len(asked), stop + len(self.stop_text), message.loss))
        return text, turns

    def _scored(self, conversation: Conversation, text: str, turns: list[_Turn], mark: str) -> RenderedConversation:
        cuts = sorted({edge for turn in turns for edge in (turn.start, turn.end)})
        token_ids, place = self._encode(text, mark, cuts)
        weights = [0.0] * len(token_ids)
        ends = []
        for turn in turns:
            if turn.weight > 0:
                start, end = place[turn.start], place[turn.end]
                weights[start:end] = [turn.weight] * (end - start)
                ends.append(end)
        if not ends:
            raise ValueError(
                f"{conversation.source or 'conversation'}: no token is scored, so there is nothing to train on"
            )
        return RenderedConversation(token_ids=tuple(token_ids), target_weights=tuple(weights), turn_ends=tuple(ends))

    def _encode(self, text: str, mark: str, cuts: list[int]) -> tuple[list[int], dict[int, int]]:
        """Token ids, and how many of them lie before each cut (a character position).

        The text is tokenized whole, as the model's own tooling does, unless a token would straddle a cut (then a prompt
        would not be a prefix of what was trained) or a mark stands in it: then it is tokenized from cut to cut.
        """
        if not mark and self.tokenizer.is_fast:
            encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
            offsets = encoded["offset_mapping"]
            if not any(start < cut < end for cut in cuts for start, end in offsets):
                starts = [start for start, _ in offsets]
                return list(encoded["input_ids"]), {cut: _before(starts, cut) for cut in cuts}
        ids: list[int] = []
        place: dict[int, int] = {}
        for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            place[start] = len(ids)
            ids.extend(self._encode_piece(text[start:end], mark))
        return ids, place

    def _encode_piece(self, text: str, mark: str) -> list[int]:
        if mark:
            return self.control.encode(text, mark)
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []

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

    def _find_stop(self) -> str:
        """The control token with which the template ends an assistant turn."""
        messages = [_as_dict(message) for message in PROBE]
        said = self._text(messages, [], "a trial conversation")
        after = said[said.rfind(PROBE[-1].content) + len(PROBE[-1].content) :]
        for token in self.tokenizer.all_special_tokens + list(self.tokenizer.get_added_vocab()):
            if after.lstrip().startswith(token):
                return str(token)
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


def chatml_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The ChatML template in the tokenizer's own tokens.

    Where <|im_end|> is no token of it, its end-of-text token ends a turn: a new token would have an untrained embedding.
    """
    stop = "<|im_end|>" if "<|im_end|>" in tokenizer.get_added_vocab() else tokenizer.eos_token
    if stop is None:
        raise ValueError(
            "chat_format chatml: the tokenizer has neither <|im_end|> nor an end-of-text token to stop with"
        )
    return CHATML.replace("STOP", repr(str(stop)))


def _before(starts: list[int], cut: int) -> int:
    """How many tokens start before a character position."""
    return sum(start < cut for start in starts)


def _as_dict(message: Message) -> dict[str, Any]:
    optional = {
        "tool_calls": list(message.tool_calls),
        "tool_call_id": message.tool_call_id,
        "name": message.name,
    }
    return {"role": message.role, "content": message.content} | {key: value for key, value in optional.items() if value}
