"""What a model says under each kind of chat template: thought, answer and calls apart, and the conversation goes on."""

import json
from dataclasses import replace

import mlflow.pyfunc
import pytest

from components.conversations.canonical_tools import canonical_call
from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.conversations.openai_messages import messages_of
from components.experiment.spec import ChatFormatSpec, ModelSpec
from components.inference.chat_session import ChatSession
from components.inference.generate import reply_to, stream_reply
from components.models.load_trained import load_base
from components.registry.model_package import save_packaged
from components.registry.probes import Probe
from components.registry.verification_worker import answer_to, text_of_reply, text_of_thought
from tests.support.agent import ROWS, speak
from tests.support.template_kinds import KINDS, sequences
from tests.support.toy import assistant, tiny_model_directory, user
from tests.support.trials import Trials

TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


def calling(*names, **keys):
    functions = [{"name": name, "arguments": {"a": 2, "b": "hi"}} for name in names]
    calls = tuple(canonical_call({"type": "function", "function": function}) for function in functions)
    return Message(role="assistant", content="", tool_calls=calls, **keys)


def thinking(thought, answer):
    return Message(role="assistant", content=answer, reasoning_content=thought)


RESULT = Message(role="tool", content="five", name="add")
TALKS = {
    "plain": (user("hi"), assistant("yo"), user("ok"), assistant("bye"), user("so"), assistant("now")),
    "thoughts": (user("hi"), thinking("hm", "yo"), user("ok"), thinking("so\nso", "bye")),
    "calls": (user("hi"), calling("add"), RESULT, assistant("bye"), user("ok"), assistant("now")),
    "thoughts and calls": (
        *(user("hi"), calling("add", reasoning_content="hm"), RESULT, thinking("so", "bye")),
        *(user("ok"), thinking("kind", "now")),
    ),
}
PLAIN, THOUGHTS, CALLS, BOTH = TALKS
# What each kind of template can say at all; what it cannot is refused in training.
TALKS_OF = dict.fromkeys(KINDS, (PLAIN,)) | {
    "thought_in_newest": (PLAIN, THOUGHTS),
    "thought_since_question": (PLAIN, THOUGHTS, CALLS, BOTH),
    **dict.fromkeys(("thought_opened", "thought_opened_by_switch", "thought_opened_or_empty"), (THOUGHTS,)),
    "thought_in_content": (THOUGHTS,),
    "always_asks": (PLAIN, CALLS),
    "thinking_switch": (PLAIN, THOUGHTS),
    "channels": (PLAIN, THOUGHTS, CALLS, BOTH),
    **dict.fromkeys(
        (
            *("next_role_stops", "tools_in_json", "tools_in_xml", "tools_in_python"),
            *("arguments_as_text", "arguments_as_mapping"),
        ),
        (PLAIN, CALLS),
    ),
}
CASES = [(kind, talk) for kind, talks in TALKS_OF.items() for talk in talks]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_model_directory(folder, least_rows=ROWS)
    return load_base(ModelSpec(path=str(folder)))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A registered model of a trained tiny one, as MLflow loads it."""
    folder = tmp_path_factory.mktemp("served")
    save_packaged(Trials(folder, least_rows=ROWS).packaged("lora", folder / "package"), folder / "version")
    return mlflow.pyfunc.load_model(str(folder / "version"))


def format_of(kind, **spec):
    return load_chat_format(KINDS[kind].tokenizer(), ChatFormatSpec(**spec))


def trained_turns(chat_format, messages, tools=()):
    """(prompt, answer with its stop) of each turn, as training has them."""
    rendered = chat_format.render(Conversation(messages=tuple(messages), tools=tuple(tools)))
    positions = [number for number, message in enumerate(messages) if message.role == "assistant"]
    paths = list(sequences(rendered))
    assert len(paths) == len(positions)
    lengths = [len(chat_format.prompt(messages[:position], tools)) for position in positions]
    return [(list(path[:length]), list(path[length:])) for path, length in zip(paths, lengths, strict=True)]


def tools_of(talk):
    return [TOOL] if talk in (CALLS, BOTH) else []


def plain_calls(message):
    return [call["function"] for call in message.tool_calls]


@pytest.mark.parametrize(("kind", "talk"), CASES)
def test_a_conversation_goes_on_as_it_was_trained_and_is_read_as_it_was_written(kind, talk, model, monkeypatch):
    loaded = replace(model, chat_format=format_of(kind))
    turns = trained_turns(loaded.chat_format, TALKS[talk], tools_of(talk))
    prompts = speak(monkeypatch, loaded.model, *(answer for _, answer in turns))
    session = ChatSession(loaded, tools=tools_of(talk))
    for message in TALKS[talk]:
        if message.role != "assistant":
            list(session.send(message.content))
    assert prompts == [prompt for prompt, _ in turns]
    for read, written in zip(session.messages, TALKS[talk], strict=True):
        assert (read.role, read.content, read.reasoning_content) == (
            written.role,
            written.content,
            written.reasoning_content,
        )
        assert plain_calls(read) == plain_calls(written)


@pytest.mark.parametrize("kind", ["tools_in_json", "tools_in_xml", "tools_in_python", "next_role_stops"])
def test_several_calls_and_calls_without_arguments_are_read(kind):
    chat_format = format_of(kind)
    message = calling("add", "now")
    message.tool_calls[1]["function"]["arguments"] = {}
    ((_, answer),) = trained_turns(chat_format, [user("hi"), message], [TOOL])
    assert plain_calls(chat_format.message(answer[:-1])) == plain_calls(message)


@pytest.mark.parametrize("kind", ["tools_in_xml", "tools_in_python", "next_role_stops"])
def test_half_a_call_or_a_call_with_words_behind_it_is_words(kind):
    chat_format = format_of(kind)
    ((_, answer),) = trained_turns(chat_format, [user("hi"), calling("add")], [TOOL])
    for said in (answer[:-4], [*answer[:-1], *chat_format.tokenizer.encode("so", add_special_tokens=False)]):
        assert chat_format.message(said).tool_calls == ()


@pytest.mark.parametrize(("kind", "talk"), [case for case in CASES if case[1] != CALLS])
def test_a_stream_of_words_has_the_answers_alone(kind, talk, model, monkeypatch):
    loaded = replace(model, chat_format=format_of(kind))
    turns = trained_turns(loaded.chat_format, TALKS[talk], tools_of(talk))
    speak(monkeypatch, loaded.model, *(answer for _, answer in turns))
    written = [message for message in TALKS[talk] if message.role == "assistant"]
    for message in written:
        pieces = list(stream_reply(loaded, [user("hi")], only_words=True))
        assert "".join(pieces) == message.content


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("thought_in_newest", "<think>\nhm\n</think>\n\nyo"),
        ("thought_opened", "hm\n</think>\n\nyo"),
        ("thinking_switch", "<think>\nhm\n</think>\n\nyo"),
        ("channels", "<think>\nhm\n</think>\n\nyo"),
    ],
)
def test_the_text_for_people_is_the_whole_reply(kind, text, model, monkeypatch):
    loaded = replace(model, chat_format=format_of(kind))
    ((_, answer),) = trained_turns(loaded.chat_format, [user("hi"), thinking("hm", "yo")])
    speak(monkeypatch, loaded.model, answer)
    reply = reply_to(loaded, [user("hi")])
    assert (reply.text, reply.message.content, reply.message.reasoning_content) == (text, "yo", "hm")
    assert (reply.stopped, reply.new_tokens) == (True, len(answer))


@pytest.mark.parametrize(
    ("message", "pieces"),
    [
        (thinking("hm", "yo"), ["<think>\nhm", "\n</think>\n\n", "yo"]),
        (assistant("yo so"), ["yo", " ", "so"]),
        (calling("add", reasoning_content="hm"), ["<think>\nhm", "\n</think>\n\n "]),
    ],
    ids=["thought", "no thought", "call"],
)
def test_a_thought_in_control_tokens_is_streamed_to_people_in_tags(message, pieces, model, monkeypatch):
    loaded = replace(model, chat_format=format_of("channels"))
    tools = [TOOL] if message.tool_calls else []
    ((_, answer),) = trained_turns(loaded.chat_format, [user("hi"), message], tools)
    speak(monkeypatch, loaded.model, answer)
    streamed = list(stream_reply(loaded, [user("hi")]))
    assert streamed[: len(pieces)] == pieces
    assert "".join(streamed) == reply_to(loaded, [user("hi")]).text


@pytest.mark.parametrize("kind", ["thought_in_newest", "thought_opened", "channels"])
def test_a_thought_that_is_cut_off_is_no_answer(kind, model, monkeypatch):
    loaded = replace(model, chat_format=format_of(kind))
    ((_, answer),) = trained_turns(loaded.chat_format, [user("hi"), thinking("hm so", "yo")])
    cut = answer.index(loaded.chat_format.tokenizer.convert_tokens_to_ids("so")) + 1
    speak(monkeypatch, loaded.model, answer[:cut])
    reply = reply_to(loaded, [user("hi")])
    assert (reply.message.content, reply.message.reasoning_content, reply.finish_reason) == ("", "hm so", "length")
    assert list(stream_reply(loaded, [user("hi")], only_words=True)) == []


def test_words_about_the_end_of_a_thought_are_an_answer(model, monkeypatch):
    loaded = replace(model, chat_format=format_of("thought_in_newest"))
    said = loaded.chat_format.tokenizer.encode("so </think> ok", add_special_tokens=False)
    speak(monkeypatch, loaded.model, [*said, loaded.chat_format.stop_token_ids[0]])
    assert reply_to(loaded, [user("hi")]).message == assistant("so </think> ok")
    assert "".join(stream_reply(loaded, [user("hi")], only_words=True)) == "so </think> ok"


@pytest.mark.parametrize(
    "written",
    [
        {"content": "yo", "reasoning_content": "hm"},
        {"content": "yo", "reasoning": "hm"},
        {"content": "yo", "thinking": "hm"},
        {"content": "<think>\nhm\n</think>\n\nyo"},
        {"content": "<think>hm</think>yo"},
        {"content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yo"}]},
    ],
    ids=["reasoning_content", "reasoning", "thinking", "inline", "inline without blanks", "parts"],
)
@pytest.mark.parametrize("kind", ["thought_in_newest", "thought_opened", "thought_since_question", "channels"])
def test_reasoning_is_one_prompt_and_one_training_however_it_is_written(kind, written):
    chat_format = format_of(kind)
    asked = [{"role": "user", "content": "hi"}, {"role": "assistant", **written}, {"role": "user", "content": "ok"}]
    expected = [user("hi"), thinking("hm", "yo"), user("ok")]
    assert chat_format.prompt(messages_of(asked)) == chat_format.prompt(expected)
    trained = chat_format.render(Conversation(messages=tuple(expected[:2])))
    assert chat_format.render(Conversation(messages=tuple(messages_of(asked[:2])))) == trained
    assert chat_format.tokenizer.decode(trained.token_ids).count("hm") == 1


# Stops


@pytest.mark.parametrize(
    ("kind", "ends", "stops"),
    [
        ("two_stops", None, ["<|over|>"]),
        ("next_role_stops", None, ["<|user|>", "<|observation|>", "<|endoftext|>"]),
        ("end_at_end", None, ["</s>"]),
        ("end_behind_stop", None, ["<|end|>"]),
        ("end_behind_stop", ("<|endoftext|>", "<|end|>"), ["<|end|>", "<|endoftext|>"]),
        ("tools_in_python", None, ["<|over|>", "<|calls|>"]),
        ("channels", ("<|return|>",), ["<|return|>", "<|call|>"]),
    ],
)
def test_a_model_that_says_a_stop_has_ended_its_turn(kind, ends, stops, model, monkeypatch):
    to_id = KINDS[kind].tokenizer().convert_tokens_to_ids
    spec = {} if ends is None else {"end_token_ids": tuple(map(to_id, ends))}
    loaded = replace(model, chat_format=format_of(kind, **spec))
    assert [loaded.chat_format.tokenizer.convert_ids_to_tokens(id) for id in loaded.chat_format.stop_token_ids] == stops
    ((_, answer),) = trained_turns(loaded.chat_format, [user("hi"), assistant("yo")])
    for stop in loaded.chat_format.stop_token_ids:
        speak(monkeypatch, loaded.model, [*answer[:-1], stop, to_id("bye")])
        reply = reply_to(loaded, [user("hi")])
        assert (reply.text, reply.message, reply.stopped) == ("yo", assistant("yo"), True)
        pieces = stream_reply(loaded, [user("hi")], only_words=True)
        assert "".join(pieces) == "yo"


# Through MLflow


@pytest.fixture
def asks(served, monkeypatch):
    """Asks the registered version under one chat format; it says `answer`. Gives the prompt it got, and its reply."""

    def ask(chat_format, answer, *, stream=False, **request):
        raw = served.get_raw_model()
        monkeypatch.setattr(raw, "loaded", replace(raw.loaded, chat_format=chat_format))
        given = speak(monkeypatch, raw.loaded.model, answer)
        reply = list(served.predict_stream(request)) if stream else served.predict(request)
        return given[0], reply

    return ask


def as_request(messages):
    return [{"role": message.role, "content": message.content} for message in messages]


@pytest.mark.parametrize("kind", [kind for kind, talks in TALKS_OF.items() if THOUGHTS in talks])
def test_a_clients_conversation_goes_on_as_trained_with_and_without_the_thoughts(kind, asks):
    chat_format = format_of(kind)
    (prompt, answer), (second, _) = trained_turns(chat_format, TALKS[THOUGHTS])
    asked, reply = asks(chat_format, answer, messages=as_request(TALKS[THOUGHTS][:1]))
    assert asked == prompt
    assert reply["choices"][0]["message"]["content"] == "yo"
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["custom_outputs"] == {"reasoning_content": "hm"}
    history = as_request(TALKS[THOUGHTS][:3])
    inline = [dict(message) for message in history]
    inline[1]["content"] = "<think>\nhm\n</think>\n\nyo"
    for request in (
        {"messages": history},
        {"messages": history, "custom_inputs": {"reasoning_content": ["hm"]}},
        {"messages": history, "custom_inputs": {"reasoning_content": [None]}},
        {"messages": inline},
    ):
        assert asks(chat_format, answer, **request)[0] == second


@pytest.mark.parametrize("kind", ["thought_in_newest", "thought_opened", "channels"])
def test_a_served_stream_has_the_answer_in_pieces_and_the_thought_at_its_end(kind, asks):
    chat_format = format_of(kind)
    ((_, answer),) = trained_turns(chat_format, [user("hi"), thinking("hm", "ok yo")])
    _, chunks = asks(chat_format, answer, stream=True, messages=[{"role": "user", "content": "hi"}])
    *pieces, last = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
    assert (pieces[0], "".join(pieces), last) == ("ok", "ok yo", "")
    assert [chunk.get("custom_outputs") for chunk in chunks] == [None] * len(pieces) + [{"reasoning_content": "hm"}]


def test_thoughts_that_are_given_for_other_messages_are_refused(asks):
    messages = as_request(TALKS[THOUGHTS][:3])
    for given in (["hm", "hm"], "hm"):
        with pytest.raises(
            ValueError, match="must be a list with one text or null for each of the 1 messages from the"
        ):
            asks(format_of("channels"), [], messages=messages, custom_inputs={"reasoning_content": given})


def test_a_reply_without_a_thought_has_no_custom_outputs(asks):
    chat_format = format_of("thought_in_newest")
    ((_, answer),) = trained_turns(chat_format, [user("hi"), assistant("yo")])
    _, reply = asks(chat_format, answer, messages=[{"role": "user", "content": "hi"}])
    assert "custom_outputs" not in reply


# Probes


def test_a_probe_is_judged_by_the_answer_without_its_thought(model, monkeypatch):
    loaded = replace(model, chat_format=format_of("channels"))
    probe = Probe(messages=({"role": "user", "content": "hi"},), expect="yo")
    ((_, answer),) = trained_turns(loaded.chat_format, [user("hi"), thinking("hm so ok", "yo")])
    prompts = speak(monkeypatch, loaded.model, answer)
    assert (answer_to(loaded, probe, 64), len(prompts)) == ("yo", 1)
    cut = speak(monkeypatch, loaded.model, answer[:5], answer)
    assert (answer_to(loaded, probe, 5), len(cut)) == ("yo", 2)
    ((_, calls),) = trained_turns(loaded.chat_format, [user("hi"), calling("add", reasoning_content="hm")], [TOOL])
    speak(monkeypatch, loaded.model, calls)
    assert answer_to(loaded, probe, 64) == 'add({"a": 2, "b": "hi"})'
    ((_, plain),) = trained_turns(loaded.chat_format, [user("hi"), assistant("yo")])
    speak(monkeypatch, loaded.model, plain)
    assert answer_to(loaded, probe, 64) == "yo"


SERVED_TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"properties": {"a": {"type": "integer"}}}},
}


@pytest.mark.parametrize("kind", ["tools_in_json", "tools_in_xml", "tools_in_python"])
def test_a_served_model_that_calls_a_tool_answers_with_the_call_and_no_text(kind, asks):
    chat_format = format_of(kind)
    ((_, answer),) = trained_turns(chat_format, [user("hi"), calling("add")], [TOOL])
    request = {"messages": [{"role": "user", "content": "hi"}], "tools": [SERVED_TOOL]}
    _, reply = asks(chat_format, answer, **request)
    _, chunks = asks(chat_format, answer, stream=True, **request)
    for said in (reply["choices"][0], chunks[-1]["choices"][0]):
        (call,) = (said.get("message") or said["delta"])["tool_calls"]
        assert (call["type"], call["function"]["name"]) == ("function", "add")
        assert json.loads(call["function"]["arguments"]) == {"a": 2, "b": "hi"}
        assert said["finish_reason"] == "tool_calls"
    assert not reply["choices"][0]["message"].get("content")
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks) == ""


def test_a_served_reply_that_was_cut_says_so_whole_and_streamed(asks):
    chat_format = format_of("appends")
    request = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    ((_, answer),) = trained_turns(chat_format, [user("hi"), assistant("yo ok so")])
    _, reply = asks(chat_format, answer[:2], **request)
    assert reply["choices"][0]["finish_reason"] == "length"
    _, chunks = asks(chat_format, answer[:2], stream=True, **request)
    assert [chunk["choices"][0].get("finish_reason") for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    _, chunks = asks(chat_format, answer, stream=True, **request | {"max_tokens": 64})
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("asked", [0, -1, 100_000])
def test_a_number_of_tokens_that_no_answer_can_have_is_refused(asked, stream, asks):
    with pytest.raises(
        ValueError, match=rf"max_tokens: must be from 1 to [0-9,]+, the model's context, not {asked:,}; or "
    ):
        asks(format_of("appends"), [], stream=stream, messages=[{"role": "user", "content": "hi"}], max_tokens=asked)


def test_a_greeting_that_a_template_does_not_take_is_refused_in_words_that_help(asks):
    greeting = [{"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]
    with pytest.raises(
        ValueError, match=r"message 1 is the assistant's, before any question, .*; leave it out, or say in"
    ):
        asks(format_of("alternating"), [], messages=greeting)
    with pytest.raises(ValueError, match="one asks, the other answers, in turns"):  # another reason stays what it is
        asks(format_of("alternating"), [], messages=[*greeting, *greeting[1:]])


def test_a_greeting_that_a_template_takes_is_a_part_of_the_prompt(asks):
    chat_format = format_of("appends")
    prompt, _ = asks(
        chat_format, [], messages=[{"role": "assistant", "content": "yo"}, {"role": "user", "content": "hi"}]
    )
    assert prompt == chat_format.prompt([assistant("yo"), user("hi")])


def test_a_thought_that_took_all_the_room_is_a_word_of_the_served_model(asks):
    chat_format = format_of("thought_in_newest")
    ((_, answer),) = trained_turns(chat_format, [user("hi"), thinking("hm", "yo")])
    _, reply = asks(chat_format, answer[:3], messages=[{"role": "user", "content": "hi"}])
    assert text_of_reply(reply["choices"][0]["message"]) == ""
    assert text_of_thought(reply) == "hm"
    assert text_of_thought({"custom_outputs": None}) == text_of_thought({}) == ""


# System messages where there is no such role


def test_a_system_message_is_prepended_in_use_as_in_training(model, asks, monkeypatch):
    chat_format = format_of("system_refused", system="prepend")
    kind, asked = Message(role="system", content="be kind"), [user("hi"), assistant("yo"), user("ok")]
    turns = trained_turns(chat_format, [kind, *asked, assistant("bye")])
    assert turns == trained_turns(chat_format, [user("be kind\n\nhi"), *asked[1:], assistant("bye")])
    loaded = replace(model, chat_format=chat_format)
    prompts = speak(monkeypatch, loaded.model, *(answer for _, answer in turns))
    session = ChatSession(loaded, system="be kind")
    list(session.send("hi"))
    list(session.send("ok"))
    assert prompts == [prompt for prompt, _ in turns]
    assert asks(chat_format, turns[1][1], messages=as_request([kind, *asked]))[0] == turns[1][0]


def test_system_messages_in_a_row_or_in_the_middle_go_to_the_next_question():
    kind, brief = Message(role="system", content="be kind"), Message(role="system", content="be brief")
    chat_format = format_of("system_refused", system="prepend")
    assert trained_turns(chat_format, [kind, brief, user("hi"), assistant("yo")]) == trained_turns(
        chat_format, [user("be kind\n\nbe brief\n\nhi"), assistant("yo")]
    )
    assert trained_turns(
        chat_format, [user("hi"), assistant("yo"), brief, user("ok"), assistant("bye")]
    ) == trained_turns(chat_format, [user("hi"), assistant("yo"), user("be brief\n\nok"), assistant("bye")])
    with pytest.raises(ValueError, match="refuses it") as caught:
        trained_turns(chat_format, [user("hi"), kind, assistant("yo")])  # no question follows
    assert "prepend" not in str(caught.value)
