"""Conversations for the chat templates of each kind, and what becomes of them."""

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.experiment.spec import ChatFormatSpec
from tests.support.template_kinds import KINDS, shown
from tests.support.toy import assistant, user

TURN, OVER, END = "<|turn|>", "<|over|>", "</s>"
ASK, ANSWER, DONE = "<|asks|>", "<|answers|>", "<|done|>"
THINK, THOUGHT = "<think>", "</think>"
USER, ASSISTANT, OBSERVATION, TEXT_END = "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"
CALL, CALLED = "<call>", "</call>"
START, CHANNEL, MESSAGE, SAID = "<|start|>", "<|channel|>", "<|message|>", "<|end|>"

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
ADD = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"a": 1}}}


def thinking(thought, content, calls=()):
    return Message(role="assistant", content=content, reasoning_content=thought, tool_calls=calls)


def system(content):
    return Message(role="system", content=content)


def result(content):
    return Message(role="tool", content=content, tool_call_id="c1", name="add")


# Kinds whose prompt opens a thought refuse an answer without one.
NEEDS_THOUGHTS = {"thought_opened", "thought_opened_by_switch", "thought_opened_or_empty", "thought_in_content"}
WITHOUT_THOUGHTS = sorted(KINDS.keys() - NEEDS_THOUGHTS - {"parts"})
PLAIN = (user("hi"), assistant("yo"), user("ok"), assistant("bye"))
THOUGHTFUL = (user("hi"), thinking("hm", "yo"), user("ok"), thinking("so", "bye"))
CALLING = (user("hi"), Message(role="assistant", content="", tool_calls=(ADD,)), result("2"), assistant("two"))
LOOP = (
    user("hi"),
    thinking("hm", "", (ADD,)),
    result("2"),
    thinking("so", "two"),
    user("ok"),
    thinking("now", "bye"),
)


def format_of(kind, **keys):
    return load_chat_format(KINDS[kind].tokenizer(), ChatFormatSpec(**keys))


def render(chat_format, messages, tools=()):
    return chat_format.render(Conversation(messages=tuple(messages), tools=tuple(tools), source="a.jsonl, line 7"))


def tokens_of(kind, messages, tools=(), **keys):
    chat_format = format_of(kind, **keys)
    return shown(chat_format.tokenizer, render(chat_format, messages, tools))


def refusal(kind, messages, tools=(), **keys):
    chat_format = format_of(kind, **keys)
    with pytest.raises(ValueError, match=r"^a\.jsonl, line 7: ") as caught:
        render(chat_format, messages, tools)
    return str(caught.value)


def stops_of(kind, **keys):
    chat_format = format_of(kind, **keys)
    return {chat_format.tokenizer.decode([token]) for token in chat_format.stop_token_ids}


def scored(tokens):
    return [text for token in tokens if isinstance(token, list) for text in token]
