"""Tools through the registered version: what a client asks by OpenAI's API is the prompt that was trained on."""

import json
from dataclasses import replace

import mlflow.pyfunc
import pytest
from mlflow.types.llm import ToolDefinition

from components.conversations.canonical_tools import canonical_call, canonical_tool
from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.conversations.openai_messages import messages_of, openai_call
from components.conversations.readers.read import read_conversations
from components.conversations.tokenizers.chatglm3 import convert_tokenizer
from components.models.chatglm.tiny_model import train_sentencepiece
from components.registry.model_package import save_packaged
from components.registry.probes import Probe
from components.registry.verification_worker import text_of_reply
from tests.support.agent import AGENT, CALL, ROWS, TOOL, agent_tokenizer, speak
from tests.support.toy import assistant, user
from tests.support.trials import Trials

RECORD = {
    "messages": [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "5", "tool_call_id": "c1", "name": "add"},
        {"role": "assistant", "content": "five"},
    ],
    "tools": [TOOL],
}
FORMATS = ["template", "chatml", "chatglm3", "chatglm3_base_tuning"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A registered model of a trained tiny one, as MLflow loads it."""
    folder = tmp_path_factory.mktemp("served")
    save_packaged(Trials(folder, least_rows=ROWS).packaged("lora", folder / "package"), folder / "version")
    version = mlflow.pyfunc.load_model(str(folder / "version"))
    version.get_raw_model().loaded.model.config.max_position_embeddings = (
        2048  # the tools alone are hundreds of letters
    )
    return version


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    file = tmp_path_factory.mktemp("pieces") / "tokenizer.model"
    train_sentencepiece(["say yes we can now", "you say hi you can"] * 20, file, max_pieces=300)
    glm = convert_tokenizer(file)
    return {
        "template": load_chat_format(agent_tokenizer(), "template"),
        "chatml": load_chat_format(agent_tokenizer(None), "chatml"),
        "chatglm3": load_chat_format(glm, "chatglm3"),
        "chatglm3_base_tuning": load_chat_format(glm, "chatglm3_base_tuning"),
    }


@pytest.fixture
def asks(served, formats, monkeypatch):
    """Asks the registered version in one format; it says `answer`. Gives the prompt that its model got, and its reply."""

    def ask(name, answer=(), *, stream=False, stops=True, **request):
        model = served.get_raw_model()
        chat_format = formats[name]
        monkeypatch.setattr(model, "loaded", replace(model.loaded, chat_format=chat_format))
        said = [*answer, *([chat_format.stop_token_ids[0]] if stops else [])]
        given = speak(monkeypatch, model.loaded.model, said)
        reply = list(served.predict_stream(request)) if stream else served.predict(request)
        return given[0], reply

    return ask


def trained(chat_format, tmp_path, record=RECORD):
    """(the conversation as training reads it, its tokens)"""
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps(record) + "\n")
    (conversation,) = read_conversations(str(file)).conversations
    return conversation, list(chat_format.render(conversation).token_ids)


def answer_after(chat_format, conversation, position):
    """The tokens of message `position` as training has them, without its stop."""
    prompt = chat_format.prompt(conversation.messages[:position], conversation.tools)
    whole = chat_format.render(
        Conversation(messages=conversation.messages[: position + 1], tools=conversation.tools)
    ).token_ids[len(prompt) :]
    stop = next(i for i, token in enumerate(whole) if token in chat_format.stop_token_ids)
    return list(whole[:stop])


# Both turns, through MLflow's types


@pytest.mark.parametrize("name", FORMATS)
def test_the_served_prompt_is_the_trained_one_before_a_call_and_after_its_result(name, asks, formats, tmp_path):
    conversation, tokens = trained(formats[name], tmp_path)
    for position in (2, 4):
        answer = answer_after(formats[name], conversation, position)
        prompt, _ = asks(name, answer, messages=RECORD["messages"][:position], tools=RECORD["tools"])
        assert tokens[: len(prompt)] == prompt
        assert tokens[len(prompt) : len(prompt) + len(answer)] == answer


@pytest.mark.parametrize("name", FORMATS)
def test_a_reply_that_calls_comes_back_as_tool_calls_and_goes_on_as_trained(name, asks, formats, tmp_path):
    conversation, tokens = trained(formats[name], tmp_path)
    call = answer_after(formats[name], conversation, 2)
    _, reply = asks(name, call, messages=RECORD["messages"][:2], tools=RECORD["tools"])
    (choice,) = reply["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == ""
    (called,) = choice["message"]["tool_calls"]
    assert called["function"] == {"name": "add", "arguments": '{"b": 2, "a": [1, 2], "unit": "m"}'}
    # What a client does with it: sends it back with the result.
    result = {"role": "tool", "content": "5", "tool_call_id": called["id"]}
    messages = [*RECORD["messages"][:2], choice["message"], result]
    prompt, _ = asks(name, messages=messages, tools=RECORD["tools"])
    assert tokens[: len(prompt)] == prompt


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("words", ["", "let me see", "so:\n\n"])
def test_several_calls_and_words_before_them_are_one_message(name, words, asks, formats, tmp_path):
    second = {"id": "c2", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    both = {"role": "assistant", "content": words, "tool_calls": [CALL, second]}
    results = [
        {"role": "tool", "content": "5", "tool_call_id": "c1"},
        {"role": "tool", "content": "", "tool_call_id": "c2"},
    ]
    messages = [*RECORD["messages"][:2], both, *results, {"role": "assistant", "content": "five"}]
    conversation, tokens = trained(formats[name], tmp_path, {"messages": messages, "tools": [TOOL]})
    answer = answer_after(formats[name], conversation, 2)
    _, reply = asks(name, answer, messages=messages[:2], tools=[TOOL])
    message = reply["choices"][0]["message"]
    assert message["content"] == words
    assert [called["function"] for called in message["tool_calls"]] == [CALL["function"], second["function"]]
    assert len({called["id"] for called in message["tool_calls"]}) == 2
    prompt, _ = asks(name, messages=[*messages[:2], message, *results], tools=[TOOL])
    assert tokens[: len(prompt)] == prompt


@pytest.mark.parametrize("name", FORMATS)
def test_a_stream_has_the_words_as_they_are_made_and_the_calls_at_its_end(name, asks, formats, tmp_path):
    record = {**RECORD, "messages": [dict(message) for message in RECORD["messages"]]}
    record["messages"][2]["content"] = "so <b"
    conversation, _ = trained(formats[name], tmp_path, record)
    answer = answer_after(formats[name], conversation, 2)
    _, chunks = asks(name, answer, stream=True, messages=record["messages"][:2], tools=[TOOL])
    *words, last = [chunk["choices"][0] for chunk in chunks]
    assert "".join(chunk["delta"]["content"] for chunk in words) == "so <b"
    assert len(words) > 1
    assert [call["function"] for call in last["delta"]["tool_calls"]] == [CALL["function"]]
    assert [chunk.get("finish_reason") for chunk in (*words, last)] == [None] * len(words) + ["tool_calls"]
    assert chunks[-1]["usage"]["completion_tokens"] == len(answer) + 1


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_reply_that_was_cut_says_so_and_one_that_ended_says_that(name, stream, asks, formats, tmp_path):
    conversation, _ = trained(formats[name], tmp_path)
    answer = answer_after(formats[name], conversation, 4)
    for stops, reason in ((True, "stop"), (False, "length")):
        _, reply = asks(name, answer, stream=stream, stops=stops, messages=RECORD["messages"][:4], tools=[TOOL])
        last = reply[-1] if stream else reply
        assert last["choices"][0]["finish_reason"] == reason


# What MLflow's types do not carry


RICH = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            "type": "object",
            "properties": {"where": {"$ref": "#/$defs/place"}, "limit": {"type": ["integer", "null"], "default": None}},
            "$defs": {"place": {"type": "object", "properties": {"city": {"type": "string"}}}},
        },
    },
}


def test_schemas_that_mlflow_has_no_types_for_go_in_as_custom_inputs(asks, formats, tmp_path):
    record = {**RECORD, "tools": [RICH]}
    _, tokens = trained(formats["chatml"], tmp_path, record)
    with pytest.raises(mlflow.exceptions.MlflowException, match="Failed to enforce schema"):
        asks("chatml", messages=RECORD["messages"][:2], tools=[RICH])
    prompt, _ = asks("chatml", messages=RECORD["messages"][:2], custom_inputs={"tools": [RICH]})
    assert tokens[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("custom", "reason"),
    [
        ({"tool": []}, "custom_inputs: tool: not supported; it may hold tools and reasoning_content"),
        ({"tools": {}}, "custom_inputs: tools must be a list of objects"),
    ],
)
def test_other_custom_inputs_are_refused(custom, reason, asks):
    with pytest.raises(ValueError, match=reason):
        asks("chatml", messages=[{"role": "user", "content": "x"}], custom_inputs=custom)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "written",
    [
        {"name": "now"},
        {"type": "function", "name": "now"},
        {"type": "function", "function": {"name": "now", "strict": False, "description": None}},
        {"function": {"parameters": {"properties": {}, "type": "object"}, "name": "now"}, "type": "function"},
        {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}},
    ],
)
def test_one_tool_written_in_many_ways_is_one_prompt(name, written, asks, formats):
    plain = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}
    prompt, _ = asks(name, messages=[{"role": "user", "content": "x"}], tools=[plain])
    assert formats[name].prompt([user("x")], [written]) == prompt


# One shape for what is written in several


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"b": 1, "a": 2}', {"b": 1, "a": 2}),
        ({"b": 1}, {"b": 1}),
        ("", {}),
        (" \n", {}),
        (None, {}),
        ("[1]", "[1]"),
        ('"text"', '"text"'),
        ("tool_call(a=1)", "tool_call(a=1)"),
        ('{"a": ', '{"a": '),
    ],
)
def test_arguments_are_the_object_that_a_text_says(arguments, expected):
    call = canonical_call({"function": {"name": "add", "arguments": arguments}, "index": 0})
    assert call == {"type": "function", "function": {"name": "add", "arguments": expected}}
    assert canonical_call(call) == call


def test_a_tools_keys_have_one_order_and_its_parameters_keep_theirs():
    mixed = ToolDefinition.from_dict(TOOL).to_dict()
    assert list(mixed["function"]["parameters"]) == ["properties", "type", "required"]
    assert json.dumps(canonical_tool(mixed)) == json.dumps(TOOL)
    assert json.dumps(canonical_tool(TOOL)) == json.dumps(TOOL)
    assert canonical_tool(RICH) == RICH
    search = {"type": "web_search", "filters": {"z": 1}}
    assert canonical_tool(search) is search


def test_openais_other_roles_are_ours_and_names_and_ids_stay():
    raw = [
        {"role": "developer", "content": [{"type": "text", "text": "be "}, {"type": "text", "text": "kind"}]},
        {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": ""}}]},
        {"role": "function", "name": "f", "content": "5"},
        {"role": "tool", "tool_call_id": "1", "content": ""},
        {"role": "assistant", "content": None, "refusal": "no", "reasoning_content": "hm"},
    ]
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {}}}
    assert messages_of(raw) == [
        Message(role="system", content="be kind"),
        Message(role="assistant", content="", tool_calls=(call,)),
        Message(role="tool", content="5", name="f"),
        Message(role="tool", content="", tool_call_id="1"),
        Message(role="assistant", content="no", reasoning_content="hm"),
    ]
    assert openai_call(call) == ("f", "{}")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (
            {"role": "robot", "content": "x"},
            "message 1 is from 'robot'; roles are system, user, assistant, tool",
        ),
        ({"role": "user", "content": [{"type": "image_url"}]}, "message 1 has 'image_url' as part 1 of its content"),
        (
            {"role": "user", "content": "", "tool_calls": [CALL]},
            'message 1 from "user" has tool_calls; only an assistant',
        ),
        ({"role": "assistant", "tool_calls": [{"id": "1"}]}, "message 1 has a tool call that is no"),
    ],
)
def test_messages_that_cannot_be_read_are_named(raw, reason):
    with pytest.raises(ValueError, match=reason):
        messages_of([raw])


def test_probes_and_the_api_make_the_same_prompt(asks, formats):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "1?"}]
    prompt, _ = asks("template", messages=turns)
    assert formats["template"].prompt(Probe(messages=turns).conversation()) == prompt


@pytest.mark.parametrize("name", FORMATS)
def test_a_model_that_answers_with_a_call_alone_has_answered(name, asks, formats, tmp_path):
    conversation, _ = trained(formats[name], tmp_path)
    for position, shown in ((2, 'add({"b": 2, "a": [1, 2], "unit": "m"})'), (4, "five")):
        answer = answer_after(formats[name], conversation, position)
        _, reply = asks(name, answer, messages=RECORD["messages"][:position], tools=[TOOL])
        assert text_of_reply(reply["choices"][0]["message"]) == shown


# What is no call


@pytest.mark.parametrize("name", ["template", "chatml"])
@pytest.mark.parametrize(
    "content",
    [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}',
        '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call> and more',
        '<tool_call>\n{"name": "add", "arguments": {"a":1}}\n</tool_call>',
        '<tool_call>\n{"name": "add", "arguments": {"a": }}\n</tool_call>',
        '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>\n<tool_call>x</tool_call>',
        "<tool_call>",
        '{"name": "add", "arguments": {"a": 1}}',
    ],
)
def test_what_a_template_would_write_otherwise_is_words(name, content, formats):
    chat_format = formats[name]
    messages = (user("a"), assistant(content))
    answer = answer_after(chat_format, Conversation(messages=messages), 1)
    assert chat_format.message(answer) == Message(role="assistant", content=content)


def test_a_template_whose_calls_look_like_any_answer_in_json_has_none_to_tell_apart():
    bare = AGENT.replace("<tool_call>\n{", "{").replace("}\n</tool_call>", "}")
    chat_format = load_chat_format(agent_tokenizer(bare))
    answer = answer_after(
        chat_format, Conversation(messages=(user("a"), assistant('{"name": "add", "arguments": {}}'))), 1
    )
    assert chat_format.message(answer).tool_calls == ()


def test_calls_in_special_tokens_are_read_back(formats):
    chat_format = load_chat_format(agent_tokenizer(special=("<tool_call>", "</tool_call>")))
    message = Message(role="assistant", content="so", tool_calls=(canonical_call({**CALL, "id": None}),))
    answer = answer_after(chat_format, Conversation(messages=(user("a"), message)), 1)
    assert chat_format.message(answer) == message
