"""One record that is wrong in any way spoils no other: with `drop` it is left out and counted, else all are told together."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.conversations.readers.data_problems import MAX_SHOWN, ConversationError
from components.conversations.readers.read import read_conversations
from components.conversations.readers.record_formats import RECORD_FORMATS, _openai
from components.conversations.readers.sources import MAX_BYTES

GOOD = b'{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}'
PAIR = b'{"prompt": "hi", "response": "yo", "history": %s}'
DEEP = b"[" * 1000 + b"]" * 1000


def with_content(text):
    return GOOD.replace(b'"hi"', text)


BAD = {
    "half an emoji": (with_content(b'"hi \\ud83d"'), "half a character, \\ud83d, which is no text"),
    "half an emoji in a key": (GOOD[:-1] + b', "\\ud83d": 1}', "half a character"),
    "a list": (b"[]", "must be an object, not list"),
    "a list of lists": (b"[[1], [2]]", "must be an object, not list"),
    "null": (b"null", "must be an object, not NoneType"),
    "a number": (b"3", "must be an object, not int"),
    "bytes that are no text": (with_content(b'"\xff\xfe"'), "not UTF-8: "),
    "a surrogate as bytes": (with_content(b'"\xed\xa0\x80"'), "not UTF-8: "),
    "a long number": (GOOD[:-1] + b', "n": ' + b"9" * 5000 + b"}", "n: inf is no number that JSON has"),
    "infinity": (GOOD[:-1] + b', "n": Infinity}', "n: inf is no number that JSON has"),
    "deep": (GOOD[:-1] + b', "n": ' + DEEP + b"}", "not JSON: nested too deeply"),
    "deep tools": (GOOD[:-1] + b', "tools": ' + b"[" * 150 + b"]" * 150 + b"}", "more than 100 levels of lists"),
    "deep tools as a text": (GOOD[:-1] + b', "tools": "' + DEEP + b'"}', '"tools" is not JSON: nested too deeply'),
    "an expression without end": (GOOD[:-1] + b', "expect": "/(a|a)*$/"}', "does not end on a text of 40 letters"),
    "a raw NUL": (with_content(b'"\0"'), "not JSON: Invalid control character at"),
    "too long": (with_content(b'"' + b"x" * MAX_BYTES + b'"'), "bytes; at most 20,000,000 are read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_a_problem_of_its_line_and_the_others_are_read(tmp_path, kind):
    line, text = BAD[kind]
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([line, GOOD, line, GOOD]))
    with pytest.raises(ConversationError) as caught:
        read_conversations(str(file))
    assert [problem.location for problem in caught.value.problems] == ["line 1", "line 3"]
    assert all(text in problem.text for problem in caught.value.problems)
    assert len(str(caught.value)) < 2000
    result = read_conversations(str(file), on_bad_row="drop")
    assert [each.source for each in result.conversations] == [f"{file}, line 2", f"{file}, line 4"]
    assert len(result.dropped) == 2


@pytest.mark.parametrize(
    "history", [b"3", b'"hi"', b"{}", b"[3]", b'[["hi"]]', b'[{"hi": "yo"}]', b"[[" + b'"x", ' * 9999 + b'"x"]]']
)
def test_a_history_that_is_none_is_a_problem_of_its_record(tmp_path, history):
    (tmp_path / "a.jsonl").write_bytes(PAIR % b"[]" + b"\n" + PAIR % history)
    result = read_conversations(str(tmp_path / "a.jsonl"), on_bad_row="drop")
    assert len(result.conversations) == 2 - len(result.dropped)
    assert [len(str(problem)) < 1000 for problem in result.dropped] == [True] * (history != b"{}")


def test_of_a_list_in_json_only_what_is_nested_too_deeply_is_bad(tmp_path):
    odd = GOOD.replace(b'"hi"', b'"a [ \\" ] , { \\\\"')
    (tmp_path / "a.json").write_bytes(b"[" + b", ".join([GOOD, DEEP, odd, GOOD]) + b"]")
    result = read_conversations(str(tmp_path / "a.json"), on_bad_row="drop")
    assert [each.source.rpartition(" ")[2] for each in result.conversations] == ["1", "3", "4"]
    assert result.conversations[1].messages[0].content == 'a [ " ] , { \\'
    assert [str(problem) for problem in result.dropped] == ["record 2: not JSON: nested too deeply"]


def test_a_damaged_table_is_one_problem_of_its_file(tmp_path):
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.Table.from_pylist([json.loads(GOOD)] * 50), file)
    content = file.read_bytes()
    refused = [error for error in map(error_of, damaged(file, content)) if error is not None]
    assert len(refused) > 50
    whole = [error for error in refused if not all(problem.location for problem in error.problems)]
    assert {len(error.problems) for error in whole} == {1}


def damaged(file, content):
    """Yields the file with one byte after another inverted."""
    for at in range(0, len(content), 7):
        file.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
        yield file


def error_of(file):
    try:
        read_conversations(str(file), on_bad_row="drop")
    except ConversationError as error:
        return error
    return None


def test_many_problems_are_counted_and_not_all_shown(tmp_path):
    messages = [{"role": "robot", "content": ""}] * 500
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages, **{f"key{n}": n for n in range(500)}}))
    with pytest.raises(ConversationError) as caught:
        read_conversations(str(tmp_path / "a.jsonl"))
    assert len(caught.value.problems) == MAX_SHOWN + 1
    assert caught.value.problems[-1].text.endswith("more problems")
    assert len(str(caught.value)) < MAX_SHOWN * 700


def test_what_no_rule_has_foreseen_is_a_problem_of_its_record(tmp_path, monkeypatch):
    def short_sighted(record):
        return _openai({**record, "messages": record["messages"][: 2 // (2 - record.get("id", 0))]})

    monkeypatch.setitem(RECORD_FORMATS, "messages", short_sighted)
    (tmp_path / "a.jsonl").write_bytes(GOOD[:-1] + b', "id": 2}\n' + GOOD[:-1] + b', "id": 1}\n')
    result = read_conversations(str(tmp_path / "a.jsonl"), on_bad_row="drop")
    assert [each.source for each in result.conversations] == [f"{tmp_path}/a.jsonl, line 2"]
    assert [str(problem) for problem in result.dropped] == [
        "line 1: cannot be read (ZeroDivisionError: integer division or modulo by zero)"
    ]


def test_a_key_that_is_no_text_is_none_of_json(tmp_path):
    tools = pa.array([[[(1, "a")]]], pa.list_(pa.map_(pa.int64(), pa.string())))
    messages = pa.array([json.loads(GOOD)["messages"]])
    pyarrow.parquet.write_table(pa.table({"messages": messages, "tools": tools}), tmp_path / "a.parquet")
    with pytest.raises(ConversationError, match='record 1: "tools": 1: the key 1 is no text'):
        read_conversations(str(tmp_path / "a.parquet"))
