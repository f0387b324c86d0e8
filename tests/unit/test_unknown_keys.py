"""Every key of a record, a message and a tool call is read, counted as a note about the record, or a problem."""

import json

import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from components.data.prepare import PreparedDataset, prepare
from components.experiment.spec import DataSpec
from components.storage.open_folder import folder_at
from tests.support.toy import assistant, letter_tokenizer, save_letter_tokenizer, user
from workflows import preview

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
GOOD = [USER, ASSISTANT]
HUMAN, GPT = {"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RESULT = {"role": "tool", "content": "3"}
TWO_SYSTEMS = 'has a "system" and another system message; give it once'
WAY_OUT = "(data.unknown_keys=ignore reads on without it)"
ONE_TEXT = [{"type": "text", "text": "yo"}]


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def read(tmp_path, *records, **options):
    return read_conversations(jsonl(tmp_path / "a.jsonl", *records), **options)


def messages_of(tmp_path, record):
    (conversation,) = read(tmp_path, record).conversations
    return list(conversation.messages)


def told(tmp_path, record):
    with pytest.raises(ConversationError) as caught:
        read(tmp_path, record)
    return [str(problem) for problem in caught.value.problems]


# Keys that nothing reads


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([USER, {**ASSISTANT, "weigt": 0}], f'message 2 has the unknown key "weigt"; did you mean "weight"? {WAY_OUT}'),
        ([{**USER, "timestamp": 17}, ASSISTANT], f'message 1 has the unknown key "timestamp" {WAY_OUT}'),
        (
            [USER, {**ASSISTANT, "mask": True}],
            'message 2 has the unknown key "mask"; some tools mean scored by it, others not scored; say train: true or'
            f" train: false {WAY_OUT}",
        ),
        (
            [USER, {**ASSISTANT, "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": False}]}],
            'message 2 has the unknown key "train_detail"; a message is scored as a whole here (loss, weight or train)'
            f" {WAY_OUT}",
        ),
        (
            [{**USER, "thinking": "hm"}, ASSISTANT],
            f'message 1 has the unknown key "thinking"; only an assistant\'s message has one {WAY_OUT}',
        ),
        (
            [USER, {**ASSISTANT, "metadata": {"model": "gpt-4"}}],
            'message 2 has the unknown key "metadata"; in ChatGLM3\'s records it is a text that names the tool an assistant'
            f" calls, one of the record's tools {WAY_OUT}",
        ),
        (
            [USER, {**ASSISTANT, "metadata": "gpt-4"}],
            'message 2 has the unknown key "metadata"; in ChatGLM3\'s records it is a text that names the tool an assistant'
            f" calls, one of the record's tools {WAY_OUT}",
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{**CALL, "functoin": 1}]}, RESULT, ASSISTANT],
            f'message 2 has a tool call with the unknown key "functoin"; did you mean "function"? {WAY_OUT}',
        ),
        (
            [USER, {"role": "assistant", "tool_calls": [{"name": "add", "argument": {"a": 1}}]}, RESULT, ASSISTANT],
            f'message 2 has a tool call with the unknown key "argument"; did you mean "arguments"? {WAY_OUT}',
        ),
        (
            [USER, {"role": "assistant", "content": [{**ONE_TEXT[0], "train": False}]}],
            f'message 2 has, in part 1 of its content, the unknown key "train" {WAY_OUT}',
        ),
    ],
)  # fmt: skip
def test_an_unknown_key_in_a_conversation_is_named_with_the_nearest_known_one(tmp_path, messages, text):
    assert told(tmp_path, {"messages": messages}) == [f"line 1: {text}"]


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [HUMAN, {**GPT, "weigt": 0}]},
        {"conversations": [{"role": "user", "content": "hi"}, {**GPT, "weigt": 0}]},
        [{"role": "USER", "content": "hi"}, {"role": "ASSISTANT", "content": "yo", "weigt": 0}],
    ],
)
def test_no_layout_drops_a_key_of_a_message(tmp_path, record):
    text = f'line 1: message 2 has the unknown key "weigt"; did you mean "weight"? {WAY_OUT}'
    assert told(tmp_path, record) == [text]


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("systemm", f'has the unknown key "systemm"; did you mean "system"? {WAY_OUT}'),
        ("tool", f'has the unknown key "tool"; did you mean "tools"? {WAY_OUT}'),
        ("images", f'has the unknown key "images"; only text can be trained on {WAY_OUT}'),
        ("weight", f'has "weight" for the whole record; say it on its messages {WAY_OUT}'),
    ],
)
def test_a_key_of_a_record_that_would_change_what_is_trained_is_a_problem(tmp_path, key, text):
    assert told(tmp_path, {"messages": GOOD, key: ["be brief"]}) == [f"line 1: {text}"]


def test_keys_of_a_record_that_change_no_token_are_counted_and_never_refused(tmp_path):
    records = [{"messages": GOOD, "id": 1, "source": "web"}, {"messages": GOOD, "id": 2, "story": 7, "tags": []}]
    result = read(tmp_path, *records)
    assert result.unused_keys == {"id": 2, "source": 1, "story": 1}
    assert result.ignored_keys == {}
    alpaca = {"instruction": "hi", "output": "yo", "text": "### hi: yo", "id": 3}
    assert read(tmp_path, alpaca).unused_keys == {"id": 1, "text": 1}


def test_what_says_nothing_is_no_key(tmp_path):
    reply = {**ASSISTANT, "refusal": None, "annotations": [], "audio": {}, "function_call": None, "metadata": ""}
    assert messages_of(tmp_path, {"messages": [USER, reply], "system": None, "tools": None}) == [
        user("hi"),
        assistant("yo"),
    ]
    exported = {**ASSISTANT, "function_call": {"name": None, "arguments": None}, "weight": None, "tool_calls": None}
    assert messages_of(tmp_path, {"messages": [USER, exported]}) == [user("hi"), assistant("yo")]


def test_unknown_keys_may_be_ignored_and_are_counted_then(tmp_path):
    odd = [{**USER, "date": "May"}, {**ASSISTANT, "date": "May", "weigt": 0}]
    result = read(tmp_path, {"messages": odd, "systemm": "be"}, {"messages": GOOD}, unknown_keys="ignore")
    assert [conversation.messages for conversation in result.conversations] == [(user("hi"), assistant("yo"))] * 2
    assert result.ignored_keys == {"message.date": 1, "message.weigt": 1, "record.systemm": 1}


def test_an_unknown_key_makes_a_bad_row_which_may_be_dropped(tmp_path):
    result = read(tmp_path, {"messages": GOOD}, {"messages": [{**USER, "date": 1}, ASSISTANT]}, on_bad_row="drop")
    assert len(result.conversations) == 1
    assert [str(problem) for problem in result.dropped] == [f'line 2: message 1 has the unknown key "date" {WAY_OUT}']


def test_the_summary_and_the_manifest_of_prepared_data_say_which_keys_were_not_used(tmp_path):
    save_letter_tokenizer(tmp_path / "model")
    words = ["a", "b", "c", "d"]
    records = [{"messages": [{**USER, "content": word, "date": 1}, ASSISTANT], "id": word} for word in words]
    data = DataSpec(train=jsonl(tmp_path / "a.jsonl", *records), eval_fraction=0.25, unknown_keys="ignore")
    folder = folder_at(tmp_path / "runs")
    first = prepare(data, model_path=tmp_path / "model", chat_format="chatml", storage=folder)
    again = prepare(data, model_path=tmp_path / "model", chat_format="chatml", storage=folder)
    for dataset in (first, again):
        assert (dataset.unused_keys, dataset.ignored_keys) == ({"id": 4}, {"message.date": 4})
        assert dataset.counts["ignored_keys"] == 4
        assert dataset.summary().endswith(
            ", keys of records that change no token: id (4), unknown keys ignored: message.date (4)"
        )
    manifest = json.loads(first.directory.read_text("manifest.json"))
    del manifest["unused_keys"], manifest["ignored_keys"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert PreparedDataset.open(folder_at(tmp_path / "old")).unused_keys == {}  # prepared before such keys were counted


def test_the_preview_says_which_keys_were_not_used(tmp_path, capsys):
    save_letter_tokenizer(tmp_path / "model")
    file = jsonl(tmp_path / "a.jsonl", {"messages": [{**USER, "date": 1}, ASSISTANT], "id": 3})
    arguments = ["--model", str(tmp_path / "model"), "--data", file, "--json", "--unknown-keys", "ignore"]
    assert preview.main(arguments) == 0
    assert capsys.readouterr().err.splitlines()[:2] == [
        "keys of records that change no token: id (1)",
        "unknown keys ignored: message.date (1)",
    ]


# Keys with a known meaning


@pytest.mark.parametrize("key", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize(
    "record",
    [
        {"messages": GOOD},
        {"conversations": [HUMAN, GPT]},
        {"conversation": GOOD},
        {"instruction": "hi", "output": "yo"},
        {"prompt": "hi", "response": "yo"},
    ],
)
def test_a_system_message_of_the_record_is_read_in_every_layout(tmp_path, record, key):
    expected = [Message(role="system", content="be brief"), user("hi"), assistant("yo")]
    assert messages_of(tmp_path, {**record, key: "be brief"}) == expected


def test_tools_of_the_record_are_read_in_every_layout_and_functions_are_tools(tmp_path):
    schema = {"name": "add", "parameters": {}}
    records = [
        {"instruction": "hi", "output": "yo", "tools": [schema]},
        {"messages": GOOD, "functions": [schema]},
        {"prompt": "hi", "response": "yo", "tools": json.dumps([schema])},
    ]
    tools = [conversation.tools for conversation in read_all(tmp_path, records)]
    assert tools == [(schema,), ({"type": "function", "function": schema},), (schema,)]


def read_all(tmp_path, records):
    """Each from a file of its own, since a file has one layout."""
    files = [jsonl(tmp_path / f"{number}.jsonl", record) for number, record in enumerate(records)]
    return read_conversations(files).conversations


def test_openai_s_older_function_call_and_its_result_are_a_tool_call_and_its_result(tmp_path):
    record = {
        "messages": [
            USER,
            {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
            {"role": "function", "name": "add", "content": "3"},
            ASSISTANT,
        ]
    }
    assert messages_of(tmp_path, record) == [
        user("hi"),
        Message(role="assistant", content="", tool_calls=(CALL,)),
        Message(role="tool", content="3", name="add"),
        assistant("yo"),
    ]


def test_sharegpt_turns_may_mix_their_words_with_openai_s_but_not_contradict_them(tmp_path):
    mixed = {"conversations": [{"from": "human", "content": "hi"}, {"role": "assistant", "value": "yo"}]}
    assert messages_of(tmp_path, mixed) == [user("hi"), assistant("yo")]
    twice = {"conversations": [{**HUMAN, "content": "ho"}, GPT]}
    assert told(tmp_path, twice) == ['line 1: message 1 has both "value" and "content", and they differ']


def test_a_sharegpt_call_may_be_several(tmp_path):
    calls = json.dumps([{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": {"a": 2}}])
    turns = [HUMAN, {"from": "function_call", "value": calls}, {"from": "observation", "value": "3"}, GPT]
    called = messages_of(tmp_path, {"conversations": turns})[1].tool_calls
    assert [call["function"]["arguments"] for call in called] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"messages": [{"role": "system", "content": "be"}, *GOOD], "system": "do"}, TWO_SYSTEMS),
        ({"messages": GOOD, "system": "be", "system_prompt": "do"}, TWO_SYSTEMS),
        ({"messages": GOOD, "tools": [CALL], "functions": [CALL]}, "has both tools and functions; give them once, as tools"),
        (
            {"messages": [USER, {**ASSISTANT, "tool_calls": [CALL], "function_call": CALL["function"]}, RESULT, ASSISTANT]},
            "message 2 has both tool_calls and a function_call; give its calls once, as tool_calls",
        ),
        (
            {"messages": [USER, {**ASSISTANT, "reasoning": "a", "thinking": "b"}]},
            "message 2 has different texts as reasoning_content, reasoning, thinking; give one of them",
        ),
    ],
)  # fmt: skip
def test_what_is_said_twice_and_differs_is_a_problem(tmp_path, record, text):
    assert told(tmp_path, record) == [f"line 1: {text}"]


def test_a_part_of_a_message_that_is_no_text_is_refused_by_name(tmp_path):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}
    sound = {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}
    asked = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture, sound]}
    assert told(tmp_path, {"messages": [asked, ASSISTANT]}) == [
        "line 1: message 1 has 'image_url' as part 2 of its content; only text (\"text\") can be trained on",
        "line 1: message 1 has 'input_audio' as part 3 of its content; only text (\"text\") can be trained on",
    ]


def test_a_system_message_may_be_empty_so_that_a_template_has_no_other(tmp_path):
    empty = {"role": "system", "content": ""}
    expected = [Message(role="system", content=""), user("hi"), assistant("yo")]
    assert messages_of(tmp_path, {"messages": [empty, *GOOD]}) == expected


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"temperature": 3, "unit": "℃"}, '{"temperature": 3, "unit": "℃"}'),
        ([1, None, {"text": "a"}], '[1, null, {"text": "a"}]'),
        (3.5, "3.5"),
        (True, "true"),
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
    ],
)
def test_a_tool_s_result_may_be_any_json_and_is_its_text(tmp_path, result, text):
    calling = {"role": "assistant", "tool_calls": [CALL]}
    messages = [USER, calling, {"role": "tool", "content": result}, ASSISTANT]
    assert messages_of(tmp_path, {"messages": messages})[2] == Message(role="tool", content=text)


# Scoring


@pytest.mark.parametrize(
    ("keys", "loss"),
    [
        ({"training": False}, 0.0),
        ({"training": True}, 1.0),
        ({"loss": False}, 0.0),
        ({"loss": True}, 1.0),
        ({"weight": 0.5, "train": True}, 0.5),
        ({"weight": 0, "loss": 0.0, "train": False, "training": False}, 0.0),
        ({"loss": 2, "weight": 2.0, "training": None}, 2.0),
    ],
)
def test_how_a_message_is_scored_is_understood_in_the_words_of_several_tools(tmp_path, keys, loss):
    messages = [USER, {**ASSISTANT, **keys}, USER, ASSISTANT]
    assert messages_of(tmp_path, {"messages": messages})[1] == assistant("yo", loss_weight=loss)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"loss": 1, "weight": 0.5}, "loss: 1, weight: 0.5"),
        ({"loss": 1, "train": False}, "loss: 1, train: False"),
        ({"weight": 0, "training": True}, "weight: 0, training: True"),
        ({"train": True, "training": False}, "train: True, training: False"),
    ],
)
def test_contradictions_about_the_score_are_problems(tmp_path, keys, said):
    text = f"line 1: message 2 says in two ways how it is scored ({said}); say it once"
    assert told(tmp_path, {"messages": [USER, {**ASSISTANT, **keys}]}) == [text]


def test_who_is_never_scored_cannot_be_asked_to(tmp_path):
    text = 'line 1: message 1 from "user" has train: True; only what an assistant says is scored'
    assert told(tmp_path, {"messages": [{**USER, "train": True}, ASSISTANT]}) == [text]
    weighed = 'line 1: message 1 from "user" has loss: 0.5; only what an assistant says is scored'
    assert told(tmp_path, {"messages": [{**USER, "loss": 0.5}, ASSISTANT]}) == [weighed]
    unscored = {"messages": [{**USER, "train": False, "weight": 0, "loss": None}, ASSISTANT]}
    assert messages_of(tmp_path, unscored) == [user("hi"), assistant("yo")]


# Arguments of calls


@pytest.mark.parametrize("arguments", ["", " ", None, {}, "{}"])
def test_no_arguments_are_an_empty_object(tmp_path, arguments):
    call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, RESULT, ASSISTANT]
    assert messages_of(tmp_path, {"messages": messages})[1].tool_calls == (
        {"type": "function", "function": {"name": "add", "arguments": {}}},
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ('{"city": "Ber', "are not JSON: Unterminated string starting at; it was cut"),
        ('{"city": "Berlin"', "are not JSON: Expecting ',' delimiter; it was cut"),
        ("city=Berlin", "are not JSON: Expecting value"),
        ("[1, 2]", "must be an object, not list"),
        ('"{}"', "must be an object, not str"),
        (["Berlin"], "must be an object, not list"),
        ('{"a": 1, "a": 2}', 'are not clear: has the key "a" more than once; only one of its values could count'),
        ('{"a": {"b": NaN}}', "are not clear: a > b: nan is no number that JSON has (or one beyond 1.8e308)"),
    ],
)
def test_arguments_that_are_no_whole_object_are_a_problem(tmp_path, arguments, text):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": arguments}}
    messages = [USER, {"role": "assistant", "tool_calls": [call]}, RESULT, ASSISTANT]
    assert told(tmp_path, {"messages": messages}) == [f'line 1: message 2 calls "add" with arguments that {text}']


# Reasoning

SHOWS_REASONING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['reasoning_content'] %}<think>{{ message['reasoning_content'] }}</think>{% endif %}"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("key", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_is_shown_and_scored_where_the_template_shows_it(tmp_path, key):
    (conversation,) = read(tmp_path, {"messages": [USER, {**ASSISTANT, key: "who?"}]}).conversations
    assert conversation.messages == (user("hi"), Message(role="assistant", content="yo", reasoning_content="who?"))
    chat_format = load_chat_format(letter_tokenizer(SHOWS_REASONING), "template")
    rendered = chat_format.render(conversation)
    scored = [token for token, weight in zip(rendered.token_ids, rendered.target_weights, strict=True) if weight > 0]
    spelled = chat_format.tokenizer.decode(scored)
    assert spelled == "<think>who?</think>yo<|im_end|>"


def test_reasoning_that_a_chat_format_would_lose_is_refused_by_name():
    messages = (user("hi"), Message(role="assistant", content="yo", reasoning_content="who?"))
    conversation = Conversation(messages=messages, source="a.jsonl, line 7")
    text = r"a\.jsonl, line 7: message 2: chat_format chatml does not show its reasoning_content; take it out"
    with pytest.raises(ValueError, match=text):
        load_chat_format(letter_tokenizer(), "chatml").render(conversation)
