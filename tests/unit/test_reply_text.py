"""A reply while it is made: its pieces are its text, and nothing of a stop or of a call is shown."""

import itertools

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.inference.reply_text import ReplyText
from components.serving.chat_response import chat_choice, last_chunk
from tests.support.agent import CALL, agent_tokenizer
from tests.support.toy import assistant, letter_tokenizer, user


@pytest.fixture(scope="module")
def letters():
    return load_chat_format(letter_tokenizer())


@pytest.fixture(scope="module")
def agent():
    return load_chat_format(agent_tokenizer())


def said_by(chat_format, message):
    """The tokens of an answer, with its stop."""
    whole = chat_format.render(Conversation(messages=(user("a"), message))).token_ids
    return list(whole[len(chat_format.prompt([user("a")])) :])


def shown(text, tokens):
    """The pieces, one a token, until the reply has ended."""
    pieces = []
    for token in tokens:
        pieces.append(text.add(token))
        if text.ended:
            break
    return [*pieces, text.rest()]


@pytest.mark.parametrize("stops", [("cd",), ("cd", "dx"), ("x", "cd"), ("d", "cd"), ("abcde", "cd")])
def test_nothing_of_a_stop_text_is_shown_and_no_token_is_lost(letters, stops):
    tokens = said_by(letters, assistant("ab cd ef"))
    text = ReplyText(letters, only_words=True, stops=stops)
    pieces = shown(text, tokens)
    assert "".join(pieces) == "ab "
    reply = text.reply(3)
    assert (reply.message.content, reply.finish_reason, reply.stopped) == ("ab ", "stop", True)
    before = list(itertools.accumulate(pieces))
    assert all("ab cd ef".startswith(part) for part in before)


def test_the_beginning_of_a_stop_that_does_not_come_is_shown_in_time(letters):
    text = ReplyText(letters, only_words=True, stops=("cdx",))
    pieces = shown(text, said_by(letters, assistant("ab cd ef")))
    assert "".join(pieces) == "ab cd ef"
    assert text.reply(3).message.content == "ab cd ef"
    assert "cd" in "".join(pieces[:-2])  # once it was clear that no x follows


def test_calls_of_tools_are_apart_from_what_is_said(agent):
    message = Message(role="assistant", content="", tool_calls=(CALL,))
    text = ReplyText(agent, only_words=True)
    assert "".join(shown(text, said_by(agent, message))) == ""
    reply = text.reply(5)
    assert reply.finish_reason == "tool_calls"
    choice, chunk = chat_choice(0, reply, None), last_chunk(0, reply)
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"]) == ("function", CALL["function"]["name"])
    assert isinstance(call["function"]["arguments"], str)
    assert choice["message"]["content"] is None
    (streamed,) = chunk["delta"]["tool_calls"]
    assert (streamed["index"], streamed["function"]) == (0, call["function"])
    assert chunk["finish_reason"] == choice["finish_reason"] == "tool_calls"
