"""Whatever a data file holds, it is read or refused in words: no other exception, no hang, and one record spoils no other."""

import io
import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import read_conversations
from components.data.conversation_file import Conversations
from components.data.parallel_rendering import Renderer
from components.data.process_pool import ProcessPool
from components.data.sides import keep_apart
from components.experiment.spec import ChatFormatSpec
from tests.support.fuzzing import MAX_MESSAGE, cases, mutate_bytes, mutate_tree, num_inputs
from tests.support.template_kinds import KINDS

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": [1.5, None]}}}
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}}},
}
GOOD = {"messages": [USER, ASSISTANT]}
RECORDS = [
    GOOD,
    {
        "messages": [
            {"role": "system", "content": "be kind"},
            USER,
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "content": "3", "tool_call_id": "c"},
            {**ASSISTANT, "loss": 0.5, "reasoning_content": "hm"},
        ],
        "tools": [TOOL],
        "expect": "/y.*o/",
        "group": "g",
        "topic": "t",
    },
    {
        "messages": [
            USER,
            {**ASSISTANT, "tool_calls": json.dumps([CALL])},
            {"role": "tool", "content": {"a": [1]}},
            ASSISTANT,
        ]
    },
    {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}], "system": "be kind"},
    {"instruction": "hi", "input": "ho", "output": "yo", "history": [["hi", "yo"]]},
    {"prompt": "hi", "response": "yo", "history": [["hi", "yo"], ["hi", "ok"]], "id": 3},
    [USER, ASSISTANT, USER, ASSISTANT],
]
DEEP = "[" * 1000 + "]" * 1000


def deep(levels, wrap):
    value = 1
    for _ in range(levels):
        value = wrap(value)
    return value


LEAVES = (
    None, "", "hi", "\ud83d", "a\0b", "\x1b[2J", "user", "{", DEEP, '{"a": ' * 150 + "1" + "}" * 150, "/(a+)+$/", "/(/",
    0, -1, 0.5, 1e308, float("nan"), float("inf"), 10**400, 2**64, True, False, [], {}, [[]], [1, None],
    deep(150, lambda value: [value]), deep(150, lambda value: {"a": value}), "x" * 5000, ["hi"] * 300, {"role": 3},
    {"type": "text", "text": 3}, [{"type": "image", "url": "x"}], {"name": "f"}, {"function": {}}, [CALL], CALL, TOOL,
)  # fmt: skip
ODD_BYTES = (
    b"\xff", b"\0", b"\\ud83d", b"[" * 1000, b"{" * 50, b"NaN", b"Infinity", b"9" * 5000, b"1e999", b"null", b"\r", b"\n",
    b"[]", b"3\n", b'"', b"\\", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xe2\x80\xae", b'{"a":' * 200, b",", b"]", b"}",
)  # fmt: skip


def leaf(chance):
    return chance.choice(LEAVES)


def parquet(records):
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), buffer)
    return buffer.getvalue()


TABLES = [parquet([each] * 3) for each in RECORDS[:2] + RECORDS[3:6]] + [
    parquet([{**GOOD, "tools": json.dumps([TOOL])}] * 200)
]


def fuzzed(chance):
    """(suffix of the file, its bytes)."""
    kind = chance.choice(("tree.jsonl", "tree.json", "bytes.jsonl", "bytes.json", "parquet"))
    if kind == "parquet":
        return ".parquet", mutate_bytes(chance, chance.choice(TABLES), ODD_BYTES)
    records = [chance.choice(RECORDS) for _ in range(chance.randint(1, 3))]
    if kind.startswith("tree"):
        records = [mutate_tree(chance, record, leaf) if chance.random() < 0.6 else record for record in records]
    texts = [json.dumps(record) for record in records]
    text = "\n".join(texts) if kind.endswith("l") else f"[{', '.join(texts)}]"
    content = text.encode()
    return f".{kind.partition('.')[2]}", mutate_bytes(chance, content, ODD_BYTES) if kind.startswith(
        "bytes"
    ) else content


@pytest.fixture(scope="module")
def renderer():
    from components.conversations.chat_formats import load_chat_format

    spec = ChatFormatSpec()
    chat_format = load_chat_format(KINDS["thought_since_question"].tokenizer(), spec)
    return Renderer(chat_format=chat_format, pool=ProcessPool(1))


def said_of(result, renderer):
    """Goes on with what was read as preparing data does, and returns all that is said of it."""
    kept = Conversations.of(result.conversations)
    assert list(kept) == list(result.conversations)
    keep_apart(kept, kept[:0], kept[:0], threshold=0.7)
    refused = [text for text in renderer.render(result.conversations) if isinstance(text, str)]
    return "".join(map(str, (*result.dropped, *result.mended, *refused)))


def test_whatever_a_file_holds_is_read_or_refused_in_words(tmp_path, renderer):
    outcomes = {"read": 0, "refused": 0, "dropped": 0}
    for chance in cases(few=400):
        suffix, content = fuzzed(chance)
        file = tmp_path / f"a{suffix}"
        file.write_bytes(content)
        options = {
            "on_bad_row": chance.choice(("fail", "drop", "drop")),
            "unknown_keys": chance.choice(("fail", "ignore")),
        }
        options |= {"group_by": chance.choice((*[None] * 9, "id")), "tag": chance.choice((None, "topic"))}
        try:
            result = read_conversations(str(file), **options)
        except ConversationError as error:
            message = str(error)
            outcomes["refused"] += 1
        else:
            message = said_of(result, renderer)
            outcomes["dropped"] += len(result.dropped)
            outcomes["read"] += len(result.conversations)
        assert len(message) < MAX_MESSAGE
    assert min(outcomes.values()) > num_inputs(400) // 8, outcomes
