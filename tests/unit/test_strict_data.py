"""Data that a lenient reader would change in silence: other rows' keys, keys that stand twice, numbers that are none."""

import datetime
import json
import random
from collections import Counter
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.conversations.messages import Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.mending import mend
from components.conversations.readers.raw_message import RecordFormatError
from components.conversations.readers.read import content_digest, read_conversations
from components.conversations.readers.record_formats import RECORD_FORMATS
from components.conversations.readers.validation import validate
from tests.support.toy import assistant, user

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
GOOD = '[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]'
WEATHER = {"name": "weather", "parameters": {"properties": {"city": {"type": "string"}}, "required": ["city"]}}
ADD = {"name": "add", "parameters": {"properties": {"a": {"type": "number", "enum": [1, None]}}}}


def calling(tool, arguments):
    call = {"type": "function", "function": {"name": tool["name"], "arguments": arguments}}
    return {
        "messages": [USER, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3"}, ASSISTANT],
        "tools": [tool],
    }


ROWS = [
    calling(WEATHER, {"city": "Berlin"}),
    calling(ADD, {"a": 1.0, "b": [{"c": 2}, {"d": 3}]}),
    calling(ADD, {"a": 2.0}),
]


def read(source, **options):
    return read_conversations(str(source), **options).conversations


def told(path, text, **options):
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConversationError) as caught:
        read_conversations(str(path), **options)
    return [str(problem) for problem in caught.value.problems]


# Tables


@pytest.mark.parametrize("kind", ["parquet", "hub"])
def test_a_row_of_a_table_has_no_keys_of_other_rows_at_any_depth(tmp_path, kind):
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "data" / "train.parquet")
    nulls = pyarrow.parquet.read_table(tmp_path / "data" / "train.parquet").to_pylist()[0]["messages"][1]
    assert nulls["tool_calls"][0]["function"]["arguments"] == {"city": "Berlin", "a": None, "b": None}  # the union
    source = tmp_path / "data" / "train.parquet" if kind == "parquet" else f"hf:{tmp_path / 'data'}"
    conversations = read(source)
    arguments = [one.messages[1].tool_calls[0]["function"]["arguments"] for one in conversations]
    assert arguments == [{"city": "Berlin"}, {"a": 1.0, "b": [{"c": 2}, {"d": 3}]}, {"a": 2.0}]
    assert [one.tools for one in conversations] == [(WEATHER,), (ADD,), (ADD,)]
    assert conversations[0].messages[0] == user("hi")
    assert conversations[0].messages[2] == Message(role="tool", content="3")


def test_a_null_that_is_meant_stays_in_json_and_in_json_text_of_a_table(tmp_path):
    schema = {"name": "add", "parameters": {"properties": {"a": {"default": None, "enum": [1, None]}}}}
    record = {**calling(schema, {"a": None}), "tools": [schema]}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    (read_as_json,) = read(tmp_path / "a.jsonl")
    assert read_as_json.tools == (schema,)
    assert read_as_json.messages[1].tool_calls[0]["function"]["arguments"] == {"a": None}
    call = {"name": "add", "arguments": '{"a": null}'}
    messages = [
        USER,
        {"role": "assistant", "tool_calls": json.dumps([call])},
        {"role": "tool", "content": "3"},
        ASSISTANT,
    ]
    table = pa.Table.from_pylist([{"messages": messages, "tools": json.dumps([schema])}])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert [(one.messages, one.tools) for one in read(tmp_path / "a.parquet")] == [
        (read_as_json.messages, read_as_json.tools)
    ]


def test_arguments_in_a_map_column_are_an_object(tmp_path):
    function = pa.struct([("name", pa.string()), ("arguments", pa.map_(pa.string(), pa.string()))])
    message = pa.struct(
        [("role", pa.string()), ("content", pa.string()), ("tool_calls", pa.list_(pa.struct([("function", function)])))]
    )
    called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": [("city", "Berlin")]}}]}
    messages = [USER, called, {"role": "tool", "content": "3"}, ASSISTANT]
    table = pa.table({"messages": pa.array([messages], pa.list_(message))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (conversation,) = read(tmp_path / "a.parquet")
    assert conversation.messages[1].tool_calls[0]["function"]["arguments"] == {"city": "Berlin"}


def test_a_value_that_json_lacks_is_no_argument(tmp_path):
    pyarrow.parquet.write_table(
        pa.Table.from_pylist([calling(ADD, {"day": datetime.date(2024, 1, 1)})]), tmp_path / "a.parquet"
    )
    with pytest.raises(ConversationError) as caught:
        read(tmp_path / "a.parquet")
    assert [str(problem) for problem in caught.value.problems] == [
        'record 1: message 2 calls "add" with arguments that JSON cannot say: day: a date is nothing that JSON has'
    ]


# JSON

NO_NUMBER = "is no number that JSON has (or one beyond 1.8e308)"
TWICE = 'has the key "content" more than once; only one of its values could count'


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ('{"messages": [{"role": "user", "content": "hi", "content": "ho"}]}', f"messages > 1: {TWICE}"),
        (f'{{"messages": {GOOD}, "messages": []}}', TWICE.replace("content", "messages")),
        (f'{{"messages": {GOOD}, "score": NaN}}', f"score: nan {NO_NUMBER}"),
        (f'{{"messages": {GOOD}, "score": [-Infinity]}}', f"score > 1: -inf {NO_NUMBER}"),
        (f'{{"messages": {GOOD}, "score": 1e400}}', f"score: inf {NO_NUMBER}"),
        (
            '{"messages": [{"role": "user", "content": "hi \\ud83d"}]}',
            "messages > 1 > content: has half a character, \\ud83d, which is no text",
        ),
        ("\ufeff[]", "not JSON: Unexpected UTF-8 BOM (decode using utf-8-sig) at column 1"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", f"a: inf {NO_NUMBER}"),
        (f'{{"messages": {GOOD}, "tools": {"[" * 120}{"]" * 120}}}', "tools: has more than 100 levels of lists and objects"),
    ],
)  # fmt: skip
def test_what_json_does_not_say_plainly_is_a_problem_of_its_line(tmp_path, line, text):
    problems = told(tmp_path / "a.jsonl", f'{{"messages": {GOOD}}}\n{line}\n')
    assert [problem[: len(text) + 8] for problem in problems] == [f"line 2: {text}"]


def test_of_a_json_file_only_the_records_that_are_not_plain_are_bad(tmp_path):
    bad = '{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}'
    text = f'[{{"messages": {GOOD}}}, {bad}, {{"messages": {GOOD}}}]'
    problem = 'record 2: messages > 1: has the key "role" more than once; only one of its values could count'
    assert told(tmp_path / "a.json", text) == [problem]
    result = read_conversations(str(tmp_path / "a.json"), on_bad_row="drop")
    assert [one.source for one in result.conversations] == [f"{tmp_path}/a.json, record {n}" for n in (1, 3)]
    assert [str(dropped) for dropped in result.dropped] == [problem]
    assert told(tmp_path / "a.json", f'{{"messages": {GOOD}, "tools": [], "tools": []}}') == [
        'record 1: has the key "tools" more than once; only one of its values could count'
    ]
    bare = '[{"role": "user", "content": "a", "content": "b"}, {"role": "assistant", "content": "c"}]'
    assert told(tmp_path / "a.json", bare) == [f"record 1: 1: {TWICE}"]


def test_tools_in_a_json_text_are_read_as_strictly(tmp_path):
    tools = json.dumps('[{"name": "a", "name": "b"}]')
    assert told(tmp_path / "a.jsonl", f'{{"messages": {GOOD}, "tools": {tools}}}') == [
        'line 1: "tools" is not clear: 1: has the key "name" more than once; only one of its values could count'
    ]


def test_a_whole_character_in_two_escapes_is_one_character(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "\\ud83d\\ude00"}, {"role": "assistant", "content": "yo"}]}'
    )
    (conversation,) = read(tmp_path / "a.jsonl")
    assert conversation.messages == (user("😀"), assistant("yo"))


# What was read


def test_a_dataset_of_the_hub_is_known_by_its_rows_and_not_by_its_name(tmp_path):
    folder, copy = tmp_path / "data", tmp_path / "copy"
    source = f"hf:{folder}"
    for place in (folder, copy):
        place.mkdir()
        write_rows(place, {"messages": [USER, ASSISTANT]})
    first = content_digest(source)
    assert read_conversations(source).digest == first
    assert content_digest(f"{source}:train") == content_digest(f"hf:{copy}") == first
    write_rows(folder, {"messages": [USER, {**ASSISTANT, "content": "ya"}]})
    assert content_digest(source) != first
    assert read_conversations(source).digest == content_digest(source)


def write_rows(folder, *rows):
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_revision_and_a_split_are_handed_to_the_hub(monkeypatch):
    import datasets

    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return [{"messages": [USER, ASSISTANT]}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("hf:org/chats", "hf:org/chats:dev", "hf:org/chats@v1.2", "hf:org/chats:train[:10%]@0a1b2c"):
        assert read(source)[0].messages == (user("hi"), assistant("yo"))
    assert asked == [
        ("org/chats", {"split": "train", "revision": None}),
        ("org/chats", {"split": "dev", "revision": None}),
        ("org/chats", {"split": "train", "revision": "v1.2"}),
        ("org/chats", {"split": "train[:10%]", "revision": "0a1b2c"}),
    ]
    with pytest.raises(ConversationError, match=r"hf:a@b@c: a dataset of the hub is hf:NAME\[:SPLIT\]\[@REVISION\]"):
        read("hf:a@b@c")


def test_the_digest_is_of_what_was_read(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(f'{{"messages": {GOOD}}}\n')
    before = read_conversations(str(file)).digest
    assert before == content_digest(str(file))
    file.write_text(f'{{"messages": {GOOD}}}\n' * 2)
    assert read_conversations(str(file)).digest != before


# Anything

KEYS = [
    "role", "content", "from", "value", "tool_calls", "function_call", "metadata", "name", "parameters", "observation",
    "loss", "weight", "train", "tools", "functions", "reasoning", "tool_call_id", "id", "mask", "system", "history", "group",
    "type", "text", "function", "arguments", "image_url", "thinking",
]  # fmt: skip
ROLES = [
    "user", "assistant", "tool", "observation", "system", "function", "human", "gpt", "function_call", "tool_call", None, 3,
    [],
]  # fmt: skip
LEAVES = [None, "", "hi", "interpreter", '{"a": 1}', "[", "user", 0, 1, -1, 0.5, float("nan"), 10**400, True, False]


def anything(chance, depth=0):
    kind = chance.random()
    if depth == 3 or kind < 0.4:
        return chance.choice(LEAVES)
    if kind < 0.6:
        return [anything(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    return {chance.choice(KEYS): anything(chance, depth + 1) for _ in range(chance.randint(0, 4))}


def odd_message(chance):
    message = {"role": chance.choice(ROLES), "content": "hi" if chance.random() < 0.7 else anything(chance)}
    return message | {chance.choice(KEYS): anything(chance) for _ in range(chance.randint(0, 2))}


def test_whatever_a_record_holds_it_is_read_as_plain_values_or_refused_in_words():
    chance = random.Random(0)
    outcomes = Counter()
    for _ in range(4000):
        odd = [odd_message(chance) for _ in range(chance.randint(0, 2))]
        messages = (
            chance.sample([USER, ASSISTANT, *odd], k=2 + len(odd)) if chance.random() < 0.5 else [USER, *odd, ASSISTANT]
        )
        shape = {"messages": messages, "conversations": messages, "instruction": "hi", "output": "yo"}
        layout, own = chance.choice(
            [("messages", ["messages"]), ("sharegpt", ["conversations"]), ("alpaca", ["instruction", "output"])]
        )
        record = {key: shape[key] for key in own} | {
            chance.choice(KEYS): anything(chance) for _ in range(chance.randint(0, 2))
        }
        try:
            raw = RECORD_FORMATS[layout](record)
            checked = validate(raw, "a.jsonl, line 1")
        except RecordFormatError:
            outcomes["refused"] += 1
            continue
        outcomes["read" if checked.conversation else "refused"] += 1
        if checked.conversation:
            json.dumps(asdict(checked.conversation), allow_nan=False).encode()
            assert all(isinstance(message.content, str) for message in checked.conversation.messages)
        else:
            assert checked.problems
            mended, _ = mend(raw.messages)
            outcomes["mended"] += validate(replace(raw, messages=mended), "a.jsonl, line 1").conversation is not None
    assert outcomes["read"] > 400
    assert outcomes["refused"] > 400
    assert outcomes["mended"] > 50
