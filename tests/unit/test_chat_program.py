"""Talking on a terminal: questions, and results of the tools that the model calls."""

import json
from dataclasses import replace

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.experiment.spec import ModelSpec
from components.inference.chat_session import ChatSession
from components.models.load_trained import load_base
from tests.support.agent import CALL, ROWS, TOOL, agent_tokenizer, speak
from tests.support.toy import assistant, tiny_model_directory, user
from workflows import chat

SECOND = {"type": "function", "function": {"name": "now", "arguments": {}}}


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """(a conversation on the terminal with a model that gives these answers, the prompts that it gets)"""
    tiny_model_directory(tmp_path / "model", least_rows=ROWS)
    loaded = load_base(ModelSpec(path=str(tmp_path / "model")))
    loaded.model.config.max_position_embeddings = 2048  # the tools alone are 400 letters
    loaded = replace(loaded, chat_format=load_chat_format(agent_tokenizer()))

    def start(*answers, tools=()):
        prompts = speak(monkeypatch, loaded.model, *(tokens_of(loaded.chat_format, answer) for answer in answers))
        return ChatSession(loaded, system="be kind", tools=tools), prompts

    return start


def tokens_of(chat_format, message):
    """With its stop."""
    whole = chat_format.render(Conversation(messages=(user("a"), message))).token_ids
    return list(whole[len(chat_format.prompt([user("a")])) : -1])


def test_text_after_calls_is_their_results_in_the_prompt_of_training(talk, capsys):
    calling = Message(role="assistant", content="", tool_calls=(CALL, SECOND))
    talking, prompts = talk(calling, assistant("five"), assistant("bye"), tools=[TOOL])
    chat.send(talking, "1?")
    assert talking.pending_calls == ["add", "now"]
    chat.send(talking, "5")
    assert (talking.pending_calls, len(prompts)) == (["now"], 1)
    chat.send(talking, "noon")
    assert talking.pending_calls == []
    chat.send(talking, "thanks")
    assert [message.role for message in talking.messages[1:]] == [
        "user", "assistant", "tool", "tool", "assistant", "user", "assistant",
    ]  # fmt: skip
    chat_format = talking.model.chat_format
    said = [Message(role="system", content="be kind"), user("1?"), calling]
    results = [Message(role="tool", content="5", name="add"), Message(role="tool", content="noon", name="now")]
    trained = chat_format.render(Conversation(messages=(*said, *results, assistant("five")), tools=(TOOL,)))
    assert list(trained.token_ids[: len(prompts[1])]) == prompts[1]
    assert "five\nbye\n" in capsys.readouterr().out


def test_a_result_that_is_not_answered_is_taken_back_and_asked_for_again(talk):
    talking, _ = talk(Message(role="assistant", content="so", tool_calls=(SECOND,)), assistant("noon"))
    chat.send(talking, "when?")
    talking.messages.append(Message(role="tool", content="5", name="now"))
    talking.take_back()
    assert (talking.pending_calls, talking.messages[-1].content) == (["now"], "so")


def test_tools_are_read_from_a_file_and_what_is_none_is_refused(tmp_path):
    file = tmp_path / "tools.json"
    file.write_text(json.dumps([TOOL]))
    assert chat._read_tools(file) == [TOOL]
    assert chat._read_tools(None) == []
    for text, reason in {"[": "cannot be read", '{"name": "f"}': "must hold a list of objects"}.items():
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"--tools .*tools\.json: {reason}"):
            chat._read_tools(file)
