"""ChatGLM3's chat format, with the same tokens as its official code, and the older format of chatglm3-base-tuning.

Of a conversation of user A, assistant B, user C, assistant D the bracketed tokens are scored:

    chatglm3            [gMASK] sop <|user|> _ \\n _A <|assistant|> [_ \\n _B <|user|>] _ \\n _C <|assistant|> [_ \\n _D </s>]
    ..._base_tuning     ... <|assistant|> [_ \\n _B </s>] <|user|> _ \\n _C <|assistant|> [_ \\n _D </s>]

In use there is no </s> between turns, so an answer must end with the token of the next role. A role token is followed by
two texts, each encoded separately: a line of metadata (the name of the tool in a call, else empty) and the content.
Only the structure makes control tokens: a text that looks like one is encoded as text (see control_tokens.py).

Tools are listed in the system message as in the official code, without OpenAI's envelope.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.canonical_tools import canonicalize
from components.conversations.chat_formats.chatglm3_tool_calls import call_of, code_of
from components.conversations.chat_formats.control_tokens import AddedTokens, ControlTokenEncoder
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation, Message, hidden_reasoning_problem
from components.errors import InputError

VERSION = 2  # raise it when a change here renders anything differently: it is part of the digest of prepared data
COMMANDS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
ROLE_TOKENS = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>", "tool": "<|observation|>"}
TOOLS_INTRODUCTION = (
    "Answer the following questions as best as you can. You have access to the following tools:"  # the official one
)

# For programs that have the tokenizer without this file. There, texts that look like control tokens become tokens.
_TEMPLATE = """\
{%- set bare = namespace(tools=[]) -%}
{%- for tool in tools or [] -%}
{%- set bare.tools = bare.tools + [tool['function'] if tool['function'] else tool] -%}
{%- endfor -%}
{%- macro introduced(content) -%}
{%- if tools %}{{ content + '\\n' + (bare.tools | tojson(indent=4)) }}{% else %}{{ content }}{% endif -%}
{%- endmacro -%}
{%- macro turn(role, metadata, content) -%}
{{ '<|' + role + '|>' + metadata + '\\n' + (' ' + content if content else '') }}
{%- endmacro -%}
{{- '[gMASK]sop' -}}
{%- if tools and (not messages or messages[0]['role'] != 'system') -%}
{{- turn('system', '', introduced('INTRODUCTION')) -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- turn('system', '', introduced(message['content']) if loop.first else message['content']) -}}
{%- else -%}
{{- turn('observation' if message['role'] == 'tool' else message['role'], message['metadata'] or '', message['content']) -}}
{%- if message['role'] == 'assistant' %}{{ 'END' }}{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif -%}
""".replace("INTRODUCTION", TOOLS_INTRODUCTION)
CHAT_TEMPLATE = _TEMPLATE.replace("END", "")
TURN_ENDING_TEMPLATE = _TEMPLATE.replace("END", "</s>")


def is_chatglm3(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has ChatGLM3's commands. GLM-4 shares the role tokens, but has <sop> for sop; ChatGLM2 has none."""
    return set(COMMANDS) <= set(tokenizer.get_added_vocab())


@dataclass(slots=True)
class _Draft:
    """Tokens, the loss weight of each, and where scored turns end."""

    token_ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], weight: float) -> None:
        self.token_ids.extend(token_ids)
        self.weights.extend([weight] * len(token_ids))

    def stop(self, token_id: int, weight: float) -> None:
        """Adds the token that ends an assistant's turn."""
        self.add([token_id], weight)
        if weight > 0:
            self.turn_ends.append(len(self.token_ids))


class ChatGLM3Format:
    """With `ends_turns` every answer ends with </s>, as in chatglm3-base-tuning, not only the last of a conversation."""

    written_date: str | None = None
    scores_thoughts = True  # they are text like any other

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, ends_turns: bool) -> None:
        """Raises InputError if the tokenizer is not ChatGLM3's."""
        if not is_chatglm3(tokenizer):
            raise InputError(f"chat_format {name}: the tokenizer has no {', '.join(COMMANDS)}; it is not ChatGLM3's")
        self.tokenizer, self.name, self.ends_turns = tokenizer, name, ends_turns
        self.template = TURN_ENDING_TEMPLATE if ends_turns else CHAT_TEMPLATE
        added = AddedTokens(tokenizer)
        self.control = ControlTokenEncoder(tokenizer, added, set(COMMANDS), added.with_purpose | set(COMMANDS))
        self.role_ids = {role: self._id(token) for role, token in ROLE_TOKENS.items()}
        self.start_ids = (self._id("[gMASK]"), self._id("sop"))
        self.end_id = int(tokenizer.eos_token_id)
        self.newline_id = self.control.encode_text("\n", by_assistant=False)[-1]
        self.stop_token_ids: tuple[int, ...] = (self.end_id, self.role_ids["user"], self.role_ids["tool"])
        self.pad_token_id = int(tokenizer.pad_token_id)

    def digest(self) -> str:
        hashed = hashlib.sha256(f"{self.name} {VERSION}\n{self.pad_token_id}\n".encode())
        hashed.update(self.tokenizer.backend_tokenizer.to_str().encode())
        return hashed.hexdigest()

    def ahead(self, conversations: Sequence[Conversation]) -> AbstractContextManager[None]:
        return nullcontext()  # nothing here is slow alone

    def render(self, conversation: Conversation) -> RenderedConversation:
        self._check_reasoning(conversation.messages, conversation.source or "conversation")
        draft = self._draft(conversation.messages, conversation.tools)
        if not self.ends_turns:
            draft.stop(self.end_id, _weight_of_last(conversation.messages))
        if not draft.turn_ends:
            source = conversation.source or "conversation"
            raise InputError(f"{source}: no token is scored, so there is nothing to train on")
        return RenderedConversation(
            token_ids=tuple(draft.token_ids), target_weights=tuple(draft.weights), turn_ends=tuple(draft.turn_ends)
        )

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        self._check_reasoning(messages, "prompt")
        return [*self._draft(messages, tools).token_ids, self.role_ids["assistant"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Returns the answer; a tool call in it is its metadata line and its code."""
        parts = [f"{metadata}\n{content}" if metadata else content for metadata, content in self._parts(token_ids)]
        return "\n".join(parts)

    def words(self, token_ids: Sequence[int]) -> str:
        *whole, last = self._split_blocks(token_ids)
        stable = [*whole, last] if self.newline_id in last else whole
        parts = [self._header_and_content(block) for block in stable]
        return "\n".join(content for metadata, content in parts if not metadata)

    def message(self, token_ids: Sequence[int]) -> Message:
        """Returns the answer as a message with its tool calls, so that it can be added to the conversation."""
        parts = self._parts(token_ids)
        return Message(
            role="assistant",
            content="\n".join(content for metadata, content in parts if not metadata),
            tool_calls=tuple(call_of(metadata, content) for metadata, content in parts if metadata),
        )

    def _draft(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> _Draft:
        """Renders all messages without the stop of the last one (but with the </s> of an answer, if every answer has one)."""
        messages, tools = canonicalize(messages, tools)
        draft = _Draft()
        draft.add(self.start_ids, 0.0)
        stop_weight = 0.0  # the weight of the next role token, as the stop of the answer before it
        for message in _with_tools(messages, tools):
            own = message.loss_weight if message.role == "assistant" else 0.0
            for number, (metadata, content) in enumerate(_blocks(message)):
                role_id = self.role_ids[message.role]
                if number > 0:  # the model continues by itself, e.g. from a thought to a tool call
                    draft.add([role_id], own)
                elif role_id in self.stop_token_ids:
                    draft.stop(role_id, stop_weight)
                else:
                    draft.add([role_id], 0.0)
                is_text = message.role == "assistant" and not metadata
                draft.add(self.control.encode_text(metadata + "\n", by_assistant=False), own)
                draft.add(self.control.encode_text(content, by_assistant=is_text), own)
            if self.ends_turns and message.role == "assistant":
                draft.stop(self.end_id, own)
            stop_weight = 0.0 if self.ends_turns else own
        return draft

    def _check_reasoning(self, messages: Sequence[Message], source: str) -> None:
        for number, message in enumerate(messages, start=1):
            if message.reasoning_content:
                raise InputError(f"{source}: message {number}: {hidden_reasoning_problem(self.name)}")

    def _parts(self, token_ids: Sequence[int]) -> list[tuple[str, str]]:
        """Returns (metadata, content) of each block."""
        return [self._header_and_content(block) for block in self._split_blocks(token_ids)]

    def _split_blocks(self, token_ids: Sequence[int]) -> list[list[int]]:
        """Splits an answer at its <|assistant|> tokens."""
        blocks: list[list[int]] = [[]]
        for token_id in token_ids:
            if token_id == self.role_ids["assistant"]:
                blocks.append([])
            else:
                blocks[-1].append(token_id)
        return blocks

    def _header_and_content(self, token_ids: list[int]) -> tuple[str, str]:
        """A block without a newline is all content: the model has not learned the format yet."""
        cut = token_ids.index(self.newline_id) if self.newline_id in token_ids else -1
        return self.control.decode(token_ids[: max(cut, 0)]).strip(), self.control.decode(token_ids[cut + 1 :])

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _weight_of_last(messages: Sequence[Message]) -> float:
    return messages[-1].loss_weight if messages and messages[-1].role == "assistant" else 0.0


def _with_tools(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """Adds the tools to the system message; if there is none, the official introduction becomes one."""
    if not tools:
        return list(messages)
    given = bool(messages) and messages[0].role == "system"
    introduction = messages[0].content if given else TOOLS_INTRODUCTION
    bare = [tool.get("function", tool) for tool in tools]
    described = f"{introduction}\n{json.dumps(bare, indent=4, ensure_ascii=False)}"
    return [Message(role="system", content=described), *messages[1 if given else 0 :]]


def _blocks(message: Message) -> list[tuple[str, str]]:
    """Returns (metadata, content) for each of a message's role tokens: its text, then one for each tool call."""
    calls = [code_of(call) for call in message.tool_calls]
    return [("", message.content), *calls] if message.content or not calls else calls
