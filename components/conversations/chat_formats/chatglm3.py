"""ChatGLM3's own chat format, token by token as its official code has it, and the older one of chatglm3-base-tuning.

Of a conversation of user A, assistant B, user C, assistant D the bracketed tokens are scored:

    chatglm3            [gMASK] sop <|user|> _ \\n _A <|assistant|> [_ \\n _B <|user|>] _ \\n _C <|assistant|> [_ \\n _D </s>]
    ..._base_tuning     ... <|assistant|> [_ \\n _B </s>] <|user|> _ \\n _C <|assistant|> [_ \\n _D </s>]

In use there is no </s> between turns, so the role that speaks next is what an answer must end with. What follows a role
token is two texts, each encoded alone: a line of metadata (the name of the tool in a call, else empty) and the content.
Control tokens come from the structure alone: a text that looks like one is encoded as text (see control_text.py).

Tools stand in the system message as the official code has them, without OpenAI's envelope.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from components.conversations.canonical_tools import canonical
from components.conversations.chat_formats.chatglm3_tool_calls import call_of, code_of
from components.conversations.chat_formats.control_tokens import AddedTexts, ControlText
from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation, Message, reasoning_is_not_shown

VERSION = 2  # raise it when a change here renders anything otherwise: prepared data is addressed by it
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

# For those who use the tokenizer without this file; texts that look like control tokens are not safe there.
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
TEMPLATE_THAT_ENDS_TURNS = _TEMPLATE.replace("END", "</s>")


def is_chatglm3(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it has ChatGLM3's commands. GLM-4 shares the role tokens, but writes <sop>; ChatGLM2 has no roles."""
    return set(COMMANDS) <= set(tokenizer.get_added_vocab())


@dataclass(slots=True)
class _Draft:
    """Tokens, the weight each is scored with, and where scored turns end."""

    token_ids: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)

    def add(self, token_ids: Sequence[int], weight: float) -> None:
        self.token_ids.extend(token_ids)
        self.weights.extend([weight] * len(token_ids))

    def stop(self, token_id: int, weight: float) -> None:
        """The token that ends an assistant's turn."""
        self.add([token_id], weight)
        if weight > 0:
            self.turn_ends.append(len(self.token_ids))


class ChatGLM3Format:
    """`ends_turns`: every answer ends with </s>, as chatglm3-base-tuning has it, not only a conversation's last."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, name: str, ends_turns: bool) -> None:
        """Raises ValueError if the tokenizer is not ChatGLM3's."""
        if not is_chatglm3(tokenizer):
            raise ValueError(f"chat_format {name}: the tokenizer has no {', '.join(COMMANDS)}; it is not ChatGLM3's")
        self.tokenizer, self.name, self.ends_turns = tokenizer, name, ends_turns
        self.template = TEMPLATE_THAT_ENDS_TURNS if ends_turns else CHAT_TEMPLATE
        added = AddedTexts(tokenizer)
        self.control = ControlText(tokenizer, added, set(COMMANDS), added.with_duty | set(COMMANDS))
        self.role_ids = {role: self._id(token) for role, token in ROLE_TOKENS.items()}
        self.start_ids = (self._id("[gMASK]"), self._id("sop"))
        self.end_id = int(tokenizer.eos_token_id)
        self.newline_id = self.control.encode_said("\n", by_assistant=False)[-1]
        self.stop_token_ids: tuple[int, ...] = (self.end_id, self.role_ids["user"], self.role_ids["tool"])
        self.pad_token_id = int(tokenizer.pad_token_id)

    def digest(self) -> str:
        hashed = hashlib.sha256(f"{self.name} {VERSION}\n{self.pad_token_id}\n".encode())
        hashed.update(self.tokenizer.backend_tokenizer.to_str().encode())
        return hashed.hexdigest()

    def render(self, conversation: Conversation) -> RenderedConversation:
        self._refuse_reasoning(conversation.messages, conversation.source or "conversation")
        draft = self._draft(conversation.messages, conversation.tools)
        if not self.ends_turns:
            draft.stop(self.end_id, _weight_of_last(conversation.messages))
        if not draft.turn_ends:
            source = conversation.source or "conversation"
            raise ValueError(f"{source}: no token is scored, so there is nothing to train on")
        return RenderedConversation(
            token_ids=tuple(draft.token_ids), target_weights=tuple(draft.weights), turn_ends=tuple(draft.turn_ends)
        )

    def prompt(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = ()) -> list[int]:
        self._refuse_reasoning(messages, "prompt")
        return [*self._draft(messages, tools).token_ids, self.role_ids["assistant"]]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The answer; a tool call in it is shown as its metadata line and its code."""
        parts = [f"{metadata}\n{content}" if metadata else content for metadata, content in self._parts(token_ids)]
        return "\n".join(parts)

    def words(self, token_ids: Sequence[int]) -> str:
        *whole, last = self._stretches(token_ids)
        settled = [*whole, last] if self.newline_id in last else whole
        parts = [self._header_and_content(stretch) for stretch in settled]
        return "\n".join(content for metadata, content in parts if not metadata)

    def message(self, token_ids: Sequence[int]) -> Message:
        """The answer as a message, tool calls apart, so that it can stand in the conversation from here on."""
        parts = self._parts(token_ids)
        return Message(
            role="assistant",
            content="\n".join(content for metadata, content in parts if not metadata),
            tool_calls=tuple(call_of(metadata, content) for metadata, content in parts if metadata),
        )

    def _draft(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> _Draft:
        """All messages, without what ends the last one (but with the </s> of an answer, where every answer has one)."""
        messages, tools = canonical(messages, tools)
        draft = _Draft()
        draft.add(self.start_ids, 0.0)
        owed = 0.0  # with what weight the next role token is the stop of the answer before it
        for message in _with_tools(messages, tools):
            own = message.loss if message.role == "assistant" else 0.0
            for number, (metadata, content) in enumerate(_blocks(message)):
                role_id = self.role_ids[message.role]
                if number > 0:  # the model goes on by itself, say from a thought to a tool call
                    draft.add([role_id], own)
                elif role_id in self.stop_token_ids:
                    draft.stop(role_id, owed)
                else:
                    draft.add([role_id], 0.0)
                in_words = message.role == "assistant" and not metadata
                draft.add(self.control.encode_said(metadata + "\n", by_assistant=False), own)
                draft.add(self.control.encode_said(content, by_assistant=in_words), own)
            if self.ends_turns and message.role == "assistant":
                draft.stop(self.end_id, own)
            owed = 0.0 if self.ends_turns else own
        return draft

    def _refuse_reasoning(self, messages: Sequence[Message], source: str) -> None:
        for number, message in enumerate(messages, start=1):
            if message.reasoning_content:
                raise ValueError(f"{source}: message {number}: {reasoning_is_not_shown(self.name)}")

    def _parts(self, token_ids: Sequence[int]) -> list[tuple[str, str]]:
        """(metadata, content) of each stretch."""
        return [self._header_and_content(stretch) for stretch in self._stretches(token_ids)]

    def _stretches(self, token_ids: Sequence[int]) -> list[list[int]]:
        """What stands between <|assistant|> tokens."""
        stretches: list[list[int]] = [[]]
        for token_id in token_ids:
            if token_id == self.role_ids["assistant"]:
                stretches.append([])
            else:
                stretches[-1].append(token_id)
        return stretches

    def _header_and_content(self, token_ids: list[int]) -> tuple[str, str]:
        """A stretch without a newline is all content: a model that has not learned the format yet."""
        cut = token_ids.index(self.newline_id) if self.newline_id in token_ids else -1
        return self.control.decode(token_ids[: max(cut, 0)]).strip(), self.control.decode(token_ids[cut + 1 :])

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _weight_of_last(messages: Sequence[Message]) -> float:
    return messages[-1].loss if messages and messages[-1].role == "assistant" else 0.0


def _with_tools(messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> list[Message]:
    """Tools stand in the system message; where there is none, the official introduction is one."""
    if not tools:
        return list(messages)
    given = bool(messages) and messages[0].role == "system"
    introduction = messages[0].content if given else TOOLS_INTRODUCTION
    bare = [tool.get("function", tool) for tool in tools]
    described = f"{introduction}\n{json.dumps(bare, indent=4, ensure_ascii=False)}"
    return [Message(role="system", content=described), *messages[1 if given else 0 :]]


def _blocks(message: Message) -> list[tuple[str, str]]:
    """(metadata, content) of what stands behind each of a message's role tokens: words, then one for each tool call."""
    calls = [code_of(call) for call in message.tool_calls]
    return [("", message.content), *calls] if message.content or not calls else calls
