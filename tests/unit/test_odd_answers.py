"""Whatever is asked for and whatever a model says, a chat goes on, a served stream ends well, and a request is refused."""

import io
import json
from dataclasses import replace

import pytest
import torch
from mlflow.types.llm import ChatMessage, ChatParams

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Message
from components.errors import InputError
from components.experiment.spec import ModelSpec
from components.inference import generate
from components.inference.chat_session import ChatSession
from components.inference.generate import MOST_NEW_TOKENS, reply_to, stream_reply
from components.models.load_trained import load_base
from components.registry.chat_model import PackagedChatModel
from tests.support.agent import ROWS, agent_tokenizer, speak
from tests.support.toy import tiny_model_directory, user
from workflows import chat


@pytest.fixture
def loaded(tmp_path):
    tiny_model_directory(tmp_path / "model", least_rows=ROWS)
    loaded = load_base(ModelSpec(path=str(tmp_path / "model")))
    return replace(loaded, chat_format=load_chat_format(agent_tokenizer()))


@pytest.fixture
def served(loaded):
    with pytest.warns(FutureWarning):  # MLflow would rather see another kind
        served = PackagedChatModel()
    served.loaded = loaded
    return served


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": float("nan")}, "temperature must be 0 (greedy), or from 0.001 to 100, not nan"),
        ({"temperature": -1.0}, "temperature must be 0 (greedy), or from 0.001 to 100, not -1.0"),
        ({"temperature": 1e-300}, "temperature must be 0 (greedy), or from 0.001 to 100, not 1e-300"),
        ({"temperature": float("inf")}, "temperature must be 0 (greedy), or from 0.001 to 100, not inf"),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number above 0, not 0"),
        ({"max_new_tokens": -5}, "max_new_tokens must be a whole number above 0, not -5"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, not 0.0"),
        ({"top_p": float("nan")}, "top_p must be above 0 and at most 1, not nan"),
    ],
)
def test_options_that_no_reply_can_have_are_refused(loaded, options, said):
    for reply in (reply_to, lambda *asked, **options: list(stream_reply(*asked, **options))):
        with pytest.raises(InputError) as refused:
            reply(loaded, [user("hi")], **options)
        assert str(refused.value) == said
    if "top_p" not in options:
        with pytest.raises(InputError, match="must be"):
            ChatSession(loaded, **options)


def test_a_reply_ends_with_the_models_context(loaded, served, monkeypatch):
    loaded.model.config.max_position_embeddings = 60
    asked = []
    monkeypatch.setattr(loaded.model, "generate", lambda **inputs: asked.append(inputs) or inputs["input_ids"])
    reply_to(loaded, [user("hi")], max_new_tokens=10**12)
    served.predict(None, [ChatMessage(role="user", content="hi")], ChatParams(max_tokens=60))
    with pytest.raises(InputError, match="max_tokens: must be from 1 to 60, the model's context, not 61"):
        served.predict(None, [ChatMessage(role="user", content="hi")], ChatParams(max_tokens=61))
    prompt = asked[0]["input_ids"].shape[1]
    assert [inputs["generation_config"].max_new_tokens for inputs in asked] == [60 - prompt] * 2
    with pytest.raises(InputError, match=r"tokens, and the model's context 60: there is no room for an answer"):
        reply_to(loaded, [user("hi" * 30)], max_new_tokens=1)
    monkeypatch.setattr(generate, "longest_of", lambda config: None)
    reply_to(loaded, [user("hi")], max_new_tokens=10**12)
    assert asked[-1]["generation_config"].max_new_tokens == MOST_NEW_TOKENS


def call_of(**function):
    return Message(role="assistant", content="so", tool_calls=({"type": "function", "function": function},))


BROKEN = {
    "a call without a name": lambda said: call_of(arguments={}),
    "a name that is none": lambda said: call_of(name=5, arguments={}),
    "calls that are none": lambda said: Message(role="assistant", content="so", tool_calls=("x",)),
    "an error": lambda said: 1 / 0,
    "no end of brackets": lambda said: json.loads("[" * 100_000),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_an_answer_that_cannot_be_taken_apart_is_words(loaded, served, monkeypatch, kind, capsys):
    words = agent_tokenizer().encode("abc", add_special_tokens=False)
    monkeypatch.setattr(loaded.chat_format, "message", BROKEN[kind])
    speak(monkeypatch, loaded.model, words)
    assert reply_to(loaded, [user("hi")]).message.content == "abc"
    talking = ChatSession(loaded)
    chat.send(talking, "hi")
    assert (talking.pending_calls, talking.messages[-1].content, capsys.readouterr().out) == ([], "abc", "abc\n")
    asked = [ChatMessage(role="user", content="hi")]
    assert served.predict(None, asked, ChatParams()).choices[0].message.content == "abc"
    chunks = list(served.predict_stream(None, asked, ChatParams()))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "abc"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_words_that_cannot_be_read_while_they_come_are_read_at_the_end(loaded, served, monkeypatch):
    monkeypatch.setattr(loaded.chat_format, "words", lambda said: 1 / 0)
    speak(monkeypatch, loaded.model, agent_tokenizer().encode("abc", add_special_tokens=False))
    chunks = list(served.predict_stream(None, [ChatMessage(role="user", content="hi")], ChatParams()))
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "abc"


@pytest.mark.parametrize("said", [[], [350], [349, 350, 351]], ids=["nothing", "no token", "no tokens"])
def test_an_empty_answer_and_tokens_that_no_tokenizer_has_are_answers(loaded, served, monkeypatch, said):
    speak(monkeypatch, loaded.model, [*said, *loaded.chat_format.stop_token_ids[:1]])
    asked = [ChatMessage(role="user", content="hi")]
    assert served.predict(None, asked, ChatParams()).choices[0].finish_reason == "stop"
    assert list(served.predict_stream(None, asked, ChatParams()))[-1].choices[0].finish_reason == "stop"


def test_a_chat_goes_on_after_what_cannot_be_answered(loaded, monkeypatch, capsys):
    answers = iter([RuntimeError("probability tensor contains inf"), None])
    answer = loaded.model.generate

    def fails_once(**inputs):
        if error := next(answers, None):
            raise error
        return answer(**inputs)

    monkeypatch.setattr(loaded.model, "generate", fails_once)
    monkeypatch.setattr("sys.stdin", io.StringIO("one\nhal\ud83df\ntwo\n"))
    talking = ChatSession(loaded, max_new_tokens=2)
    assert chat._converse(talking) == 0
    assert [message.content for message in talking.messages if message.role == "user"] == ["two"]
    said = capsys.readouterr().err
    assert "(not answered, and forgotten: the model: cannot answer (probability tensor contains inf))" in said
    assert "(not answered, and forgotten: the prompt: cannot be made of these messages (" in said


def test_a_model_that_computes_nothing_ends_no_program(loaded, tmp_path):
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(InputError, match=r"the model: cannot answer \("):
        reply_to(loaded, [user("hi")], temperature=1.0)
