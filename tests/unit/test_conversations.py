"""Readers: every layout and file, and what people are told when a conversation cannot be trained on."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.conversations.messages import Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from tests.support.toy import assistant, user

SAMPLES = Path(__file__).parents[3] / "shared" / "data" / "formatted_samples.json"
GOOD = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
ASKED, TOLD = {"from": "human", "value": "hi"}, {"from": "observation", "value": "3"}
SAID = {"from": "gpt", "value": "yo"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def jsonl(path, *records):
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return str(path)


def read_one(tmp_path, record, **options):
    """The one conversation in a file with one record."""
    (conversation,) = read_conversations(jsonl(tmp_path / "a.jsonl", record), **options).conversations
    return conversation


def messages_of(tmp_path, record, **options):
    return list(read_one(tmp_path, record, **options).messages)


def told(tmp_path, *messages, **more):
    """What is wrong with one conversation, without the file's name and the record's place."""
    with pytest.raises(ConversationError) as caught:
        read_conversations(jsonl(tmp_path / "a.jsonl", {"messages": list(messages), **more}), format="messages")
    return [problem.text for problem in caught.value.problems]


# Layouts


def test_openai_messages_are_read_with_tools_and_tool_calls(tmp_path):
    asked = {**CALL, "id": "c1", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    record = {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": None, "tool_calls": [asked]},
            {"role": "tool", "content": "3", "tool_call_id": "c1", "name": "add"},
            {"role": "assistant", "content": "three"},
        ],
        "tools": TOOLS,
    }
    conversation = read_one(tmp_path, record)
    assert conversation.tools == tuple(TOOLS)
    assert list(conversation.messages) == [
        Message(role="system", content="be brief"),
        user("1 + 2?"),
        Message(role="assistant", content="", tool_calls=({**CALL, "id": "c1"},)),
        Message(role="tool", content="3", tool_call_id="c1", name="add"),
        assistant("three"),
    ]


def test_openai_text_parts_are_joined_and_tools_may_be_a_json_text(tmp_path):
    parts = [{"type": "text", "text": "good "}, {"type": "text", "text": "day"}]
    record = {"messages": [{"role": "user", "content": parts}, GOOD[1]], "tools": json.dumps(TOOLS)}
    conversation = read_one(tmp_path, record)
    assert conversation.messages == (user("good day"), assistant("yo"))
    assert conversation.tools == tuple(TOOLS)


def test_a_tool_call_without_its_openai_envelope_is_the_same_call(tmp_path):
    flat = {"name": "add", "arguments": {"a": 1, "b": 2}}
    record = {"messages": [GOOD[0], {"role": "assistant", "tool_calls": [flat]}]}
    assert messages_of(tmp_path, record)[1].tool_calls == (CALL,)


def test_sharegpt_is_read_with_its_system_tools_calls_and_observations(tmp_path):
    record = {
        "system": "be brief",
        "tools": json.dumps(TOOLS),
        "conversations": [
            {"from": "human", "value": "1 + 2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 2}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "three", "weight": 0.5},
        ],
    }
    conversation = read_one(tmp_path, record)
    assert conversation.tools == tuple(TOOLS)
    assert list(conversation.messages) == [
        Message(role="system", content="be brief"),
        user("1 + 2?"),
        Message(role="assistant", content="", tool_calls=(CALL,)),
        Message(role="tool", content="3"),
        assistant("three", loss_weight=0.5),
    ]


def test_alpaca_is_read_with_its_input_and_history(tmp_path):
    record = {
        "instruction": "translate",
        "input": "good",
        "output": "gut",
        "history": [["hi", "hallo"]],
        "system": "be brief",
    }
    assert messages_of(tmp_path, record) == [
        Message(role="system", content="be brief"),
        user("hi"),
        assistant("hallo"),
        user("translate\ngood"),
        assistant("gut"),
    ]


@pytest.mark.parametrize(
    ("keys", "question"),
    [
        ({"instruction": "", "input": "good"}, "good"),
        ({"instruction": " \n", "input": "good"}, "good"),
        ({"instruction": "translate", "input": ""}, "translate"),
        ({"instruction": "translate", "input": "good"}, "translate\ngood"),
    ],
)
def test_a_question_in_alpaca_has_no_line_for_an_empty_half(tmp_path, keys, question):
    assert messages_of(tmp_path, {**keys, "output": "gut"}) == [user(question), assistant("gut")]
    second = messages_of(tmp_path, {**keys, "output": "gut", "history": [["hi", "hallo"]]})
    assert second == [user("hi"), assistant("hallo"), user(question), assistant("gut")]


def test_nested_lists_are_read_with_roles_in_capitals_and_a_system(tmp_path):
    record = [
        {"role": "SYSTEM", "content": "be brief"},
        {"role": "USER", "content": "hi"},
        {"role": "ASSISTANT", "content": "yo"},
    ]
    assert messages_of(tmp_path, record) == [
        Message(role="system", content="be brief"),
        user("hi"),
        assistant("yo"),
    ]


@pytest.mark.parametrize(
    ("format", "record"),
    [
        ("messages", {"messages": GOOD}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]}),
        ("alpaca", {"instruction": "hi", "output": "yo"}),
        ("nested", [{"role": "USER", "content": "hi"}, {"role": "ASSISTANT", "content": "yo"}]),
    ],
)
def test_a_layout_is_detected_by_its_keys_or_named(tmp_path, format, record):
    assert messages_of(tmp_path, record) == [user("hi"), assistant("yo")]
    assert messages_of(tmp_path, record, format=format) == [user("hi"), assistant("yo")]


def test_a_broken_first_record_does_not_hide_the_layout_of_the_others(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"note": "made in May"}, {"messages": GOOD})
    read = read_conversations(file, on_bad_row="drop")
    assert [conversation.source for conversation in read.conversations] == [f"{file}, line 2"]
    assert [str(problem) for problem in read.dropped] == ['line 1: has no "messages" (keys: note)']


def test_a_file_in_no_known_layout_is_told_which_there_are(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"text": "once upon a time"})
    with pytest.raises(ConversationError) as caught:
        read_conversations(file)
    assert str(caught.value) == (
        f'{file}: line 1: is in no known layout: records have "messages" (OpenAI), "conversations" (ShareGPT),'
        ' "instruction" (Alpaca), "prompt" and "response" (pairs), or are lists of messages; say which by data.format'
    )


@pytest.mark.parametrize(
    ("format", "record", "text"),
    [
        ("messages", ["hi"], "must be an object, not list"),
        ("messages", {"messages": "hi"}, '"messages" must be a list, not str'),
        ("messages", {"messages": ["hi"]}, "message 1 must be an object, not str"),
        ("messages", {"messages": GOOD, "tools": "[{"}, '"tools" is not JSON: Expecting property name enclosed in'),
        (
            "sharegpt",
            {"conversations": [ASKED, {"from": "function_call", "value": "add(1)"}, TOLD, SAID]},
            "message 2 has a function call that is not JSON: Expecting value",
        ),
        (
            "sharegpt",
            {"conversations": [ASKED, {"from": "function_call", "value": "[1]"}, TOLD, SAID]},
            'message 2 has a function call that is no object with "name" and "arguments"',
        ),
        ("alpaca", {"instruction": "hi"}, 'has no "output" (keys: instruction)'),
        ("alpaca", {"instruction": "hi", "output": "yo", "input": 3}, '"input" must be a string, not int'),
        (
            "alpaca",
            {"instruction": "hi", "output": "yo", "history": [["a"]]},
            "history 1 must be a pair [question, answer], not ['a']",
        ),
        ("alpaca", {"instruction": "hi", "output": "yo", "history": "a"}, '"history" must be a list of pairs, not str'),
        ("nested", {"messages": GOOD}, "must be a list of messages, not dict"),
    ],
)
def test_a_record_that_is_not_in_its_layout_is_told_what_it_lacks(tmp_path, format, record, text):
    with pytest.raises(ConversationError) as caught:
        read_conversations(jsonl(tmp_path / "a.jsonl", record), format=format)
    assert [problem.text[: len(text)] for problem in caught.value.problems] == [text]


# Files


def test_json_parquet_lists_and_globs_hold_the_same_conversations_as_jsonl(tmp_path):
    records = [{"messages": GOOD}, {"messages": [*GOOD, {"role": "user", "content": "ok"}, GOOD[1]]}]
    expected = [(user("hi"), assistant("yo")), (user("hi"), assistant("yo"), user("ok"), assistant("yo"))]
    (tmp_path / "b.json").write_text(json.dumps(records), encoding="utf-8-sig")  # some editors write a byte order mark
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "c.parquet")
    jsonl(tmp_path / "a.jsonl", *records)
    for name in ("a.jsonl", "b.json", "c.parquet"):
        read = read_conversations(str(tmp_path / name))
        assert [conversation.messages for conversation in read.conversations] == expected
    together = [str(tmp_path / "a.jsonl"), str(tmp_path / "c.parquet")]
    assert [conversation.messages for conversation in read_conversations(together).conversations] == expected * 2
    everything = read_conversations(str(tmp_path / "*.*")).conversations
    assert [conversation.messages for conversation in everything] == expected * 3
    assert [conversation.source for conversation in everything] == [
        f"{tmp_path}/a.jsonl, line 1",
        f"{tmp_path}/a.jsonl, line 2",
        f"{tmp_path}/b.json, record 1",
        f"{tmp_path}/b.json, record 2",
        f"{tmp_path}/c.parquet, record 1",
        f"{tmp_path}/c.parquet, record 2",
    ]


def test_a_json_file_may_be_one_conversation(tmp_path):
    for value in (GOOD, {"messages": GOOD}):
        (tmp_path / "a.json").write_text(json.dumps(value))
        (conversation,) = read_conversations(str(tmp_path / "a.json")).conversations
        assert conversation.messages == (user("hi"), assistant("yo"))


def test_reading_does_not_wait_for_torch_or_transformers():
    code = "import sys, components.conversations.readers.read; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"


def test_a_file_named_twice_is_read_once(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"messages": GOOD})
    assert len(read_conversations([file, str(tmp_path / "*.jsonl")]).conversations) == 1


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.csv", b"user,assistant", "not a .jsonl, .json or .parquet file"),
        ("a.json", b"\xff\xfe", "not UTF-8: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
        ("a.jsonl", b"\n", "holds no conversations"),
        ("a.json", b'"hi"', "the file must hold a list of conversations"),
        (
            "a.json",
            b"{}\n{}",
            "not JSON: Extra data at line 2, column 1; one record per line is a .jsonl file",
        ),
        ("a.parquet", b"hi", "not Parquet, or damaged: ArrowInvalid: "),
    ],
)
def test_a_file_that_cannot_be_read_is_told_why(tmp_path, name, content, text):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConversationError) as caught:
        read_conversations(str(tmp_path / name))
    assert str(caught.value).startswith(f"{tmp_path / name}: {text}")


def test_files_that_do_not_exist_are_named_together(tmp_path):
    with pytest.raises(ConversationError) as caught:
        read_conversations(["nowhere.jsonl", jsonl(tmp_path / "a.jsonl", {"messages": GOOD}), "no/*.json"])
    text = (
        "no such file; a path is relative to where you run this, and a dataset of the hub is hf:NAME[:SPLIT][@REVISION]"
    )
    assert str(caught.value) == f"nowhere.jsonl: {text}\nno/*.json: {text}"


@pytest.mark.skipif(
    not SAMPLES.exists(), reason="needs ../shared/data/formatted_samples.json, which is not in the repository"
)
def test_the_older_sample_file_is_read_unchanged():
    conversations = read_conversations(str(SAMPLES)).conversations
    assert len(conversations) == 27
    assert {len(conversation.messages) for conversation in conversations} == {6}
    assert conversations[0].messages[:2] == (user("你是谁呀？"), assistant("我叫MONY，是一个AI机器人。"))


# What is scored


def test_each_message_may_say_what_its_loss_weighs(tmp_path):
    said = {"role": "assistant", "content": "yo"}
    turns = [said, {**said, "loss": 0}, {**said, "weight": 0.25}, {**said, "train": False}, {**said, "train": True}]
    record = {"messages": [message for turn in turns for message in (GOOD[0], turn)]}
    weights = [message.loss_weight for message in messages_of(tmp_path, record) if message.role == "assistant"]
    assert weights == [1.0, 0.0, 0.25, 0.0, 1.0]


# Rules

ASSISTANT = {"role": "assistant", "content": "yo"}
USER = {"role": "user", "content": "hi"}
SYSTEM = {"role": "system", "content": "be"}
CALLING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "3"}
OF_WEIGHTS = "it must be 0, or a number from 1e-06 to 1e+06"


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([], "there are no messages"),
        (
            [USER, USER, ASSISTANT],
            'message 2 is from "user" after "user"; roles must alternate; with data.on_bad_row=drop message 1 and message 2'
            " become one",
        ),
        (
            [USER, ASSISTANT, ASSISTANT],
            'message 3 is from "assistant" after "assistant"; roles must alternate; with data.on_bad_row=drop message 2 and'
            " message 3 become one",
        ),
        (
            [USER, {**ASSISTANT, "loss": 0}, ASSISTANT],
            'message 3 is from "assistant" after "assistant"; roles must alternate',
        ),
        ([ASSISTANT], 'message 1 is from "assistant"; a conversation must begin with the user'),
        ([SYSTEM, ASSISTANT], 'message 2 is from "assistant"; a conversation must begin with the user'),
        ([USER, RESULT, ASSISTANT], 'message 2 is from "tool", but no tool was called before it'),
        (
            [USER, CALLING, USER, ASSISTANT],
            'message 3 is from "user" after tool calls; their results (role "tool") must come first',
        ),
        (
            [USER, ASSISTANT, USER],
            'message 3, the last, is from "user"; the last word must be the assistant\'s; with data.on_bad_row=drop message 3'
            " is cut, for no answer follows",
        ),
        (
            [USER, CALLING, RESULT],
            'message 3, the last, is from "tool"; the last word must be the assistant\'s; with data.on_bad_row=drop message 3'
            " is cut, for no answer follows",
        ),
        (
            [USER, {"role": "robot", "content": "yo"}, ASSISTANT],
            "message 2 has the role 'robot'; roles are system, user, assistant, tool",
        ),
        ([USER, {"role": "assistant"}], "message 2 must have a text as content, not NoneType"),
        ([{"role": "user", "content": 3}, ASSISTANT], "message 1 must have a text as content, not int"),
        ([USER, {"role": "assistant", "content": " \n"}], 'message 2 from "assistant" is empty'),
        *(
            ([USER, {**ASSISTANT, "loss": weight}], f"message 2 has the loss weight {said}; {OF_WEIGHTS}")
            for weight, said in {
                -1: "-1",
                "big": "'big'",
                1e300: "1e+300",
                1e-300: "1e-300",
                1e-38: "1e-38",
                10**300: f"1{'0' * 39}...",
            }.items()
        ),
        ([USER, {**ASSISTANT, "train": "no"}], "message 2 has train: 'no'; it must be true or false"),
        (
            [USER, {**ASSISTANT, "tool_calls": [{"function": {"arguments": {}}}]}],
            'message 2 has tool_calls that are no list of {"function": {"name", "arguments"}}',
        ),
        (
            [{**USER, "tool_calls": [CALL]}, ASSISTANT],
            'message 1 from "user" has tool_calls; only an assistant calls tools',
        ),
        (
            [USER, {**ASSISTANT, "loss": 0}],
            "no assistant message has a loss above 0, so there is nothing to train on",
        ),
        ([SYSTEM], 'message 1, the last, is from "system"; the last word must be the assistant\'s'),
        ([USER], 'message 1, the last, is from "user"; the last word must be the assistant\'s'),
    ],
)  # fmt: skip
def test_a_broken_rule_is_told_with_its_message(tmp_path, messages, text):
    assert told(tmp_path, *messages) == [text]


def test_a_system_message_may_stand_anywhere_but_at_the_end(tmp_path):
    be = Message(role="system", content="be")
    record = {"messages": [SYSTEM, SYSTEM, USER, SYSTEM, ASSISTANT, SYSTEM, USER, ASSISTANT]}
    expected = [be, be, user("hi"), be, assistant("yo"), be, user("hi"), assistant("yo")]
    assert messages_of(tmp_path, record) == expected
    assert told(tmp_path, USER, ASSISTANT, SYSTEM) == [
        'message 3, the last, is from "system"; the last word must be the assistant\'s; with data.on_bad_row=drop message 3'
        " is cut, for no answer follows"
    ]


def test_tools_must_be_objects(tmp_path):
    assert told(tmp_path, *GOOD, tools=["add"]) == [
        '"tools" must be a list of objects; describe others in the system message'
    ]


def test_a_tool_may_answer_with_nothing_and_several_in_a_row(tmp_path):
    silent = {"role": "tool", "content": ""}
    record = {"messages": [USER, {**CALLING, "tool_calls": [CALL, CALL]}, silent, RESULT, ASSISTANT]}
    assert [message.role for message in messages_of(tmp_path, record)] == [
        "user", "assistant", "tool", "tool", "assistant",
    ]  # fmt: skip


def test_all_problems_of_all_files_come_together(tmp_path):
    mixed = tmp_path / "mixed.jsonl"
    lines = [
        json.dumps({"messages": GOOD}),
        '{"messages": [',
        "",
        json.dumps({"messages": [USER, {"role": "robot", "content": ""}]}),
        json.dumps({"conversations": []}),
    ]
    mixed.write_text("\n".join(lines))
    broken, short = tmp_path / "broken.json", jsonl(tmp_path / "short.jsonl", {"messages": [USER]})
    broken.write_text("[")
    with pytest.raises(ConversationError) as caught:
        read_conversations([str(mixed), str(broken), short])
    assert (
        str(caught.value)
        == f"""\
{broken}: not JSON: Expecting value at line 1, column 2; one record per line is a .jsonl file
{mixed}: 3 of 4 conversations cannot be used (data.on_bad_row=drop leaves them out)
  line 2: not JSON: Expecting value at column 15
  line 4: message 2 has the role 'robot'; roles are system, user, assistant, tool
  line 4: message 2 from "robot" is empty
  line 5: has no "messages" (keys: conversations)
{short}: 1 of 1 conversations cannot be used (data.on_bad_row=drop leaves them out)
  line 1: message 1, the last, is from "user"; the last word must be the assistant's"""
    )


def test_of_very_many_problems_only_the_first_are_shown_but_all_are_known(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", *[{"messages": [USER]}] * 25)
    with pytest.raises(ConversationError) as caught:
        read_conversations(file)
    assert len(caught.value.problems) == 25
    assert str(caught.value).splitlines()[-1] == "  ... and 5 more"


def test_bad_rows_are_dropped_and_told_if_the_user_says_so(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"messages": GOOD}, {"messages": [USER]}, {"messages": GOOD})
    read = read_conversations(file, on_bad_row="drop")
    assert [conversation.source for conversation in read.conversations] == [f"{file}, line 1", f"{file}, line 3"]
    assert [problem.location for problem in read.dropped] == ["line 2"]


def test_to_drop_every_row_is_an_error_and_so_is_a_file_that_cannot_be_read(tmp_path):
    file = jsonl(tmp_path / "a.jsonl", {"messages": [USER]})
    with pytest.raises(ConversationError, match="1 of 1 conversations cannot be used"):
        read_conversations(file, on_bad_row="drop")
    (tmp_path / "b.json").write_text("[")
    with pytest.raises(ConversationError, match=r"b\.json: not JSON"):
        read_conversations(
            [jsonl(tmp_path / "c.jsonl", {"messages": GOOD}), str(tmp_path / "b.json")], on_bad_row="drop"
        )
