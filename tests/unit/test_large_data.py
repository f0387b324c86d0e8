"""Data that no memory should hold: read in chunks, kept on disk while it is split, written in the same bytes as ever."""

import itertools
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from components.conversations.messages import Conversation, Message
from components.conversations.readers import chunks
from components.conversations.readers.chunks import ChunkedFile
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.read import content_digest, read_conversations
from components.data.conversation_file import Conversations
from components.data.token_store import ROWS_PER_CHUNK, Entry, batch_of, write_batches, write_store
from tests.support.toy import assistant, letter_tokenizer, toy_conversations, user


def written(folder, count):
    """JSONL with a byte order mark, blank lines, lines that are no JSON, records with problems, and no end of line."""
    lines = []
    for number in range(count):
        messages = [{"role": "user", "content": f"say {number}"}, {"role": "assistant", "content": f"{number}"}]
        if number % 5 == 3:
            messages.append({"role": "user", "content": "and?"})
        if number % 7 == 4:
            messages[1]["timestamp"] = 2
        lines.append(json.dumps({"messages": messages, "id": number}) if number % 6 != 5 else '{"messages": [')
        lines += [""] * (number % 4 == 1)
    file = folder / "data.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n".join(["", *lines]).encode())
    return str(file)


@pytest.mark.parametrize("bound", [("RECORDS", 1), ("RECORDS", 3), ("BYTES", 100)])
def test_a_file_that_is_read_in_small_chunks_is_read_alike(tmp_path, monkeypatch, bound):
    file = written(tmp_path, 40)
    whole = read_conversations(file, on_bad_row="drop")
    with pytest.raises(ConversationError) as refused:
        read_conversations(file)
    monkeypatch.setattr(chunks, *bound)
    assert len(list(ChunkedFile(file, "auto"))) > 10
    assert read_conversations(file, on_bad_row="drop") == whole
    with pytest.raises(ConversationError) as refused_in_chunks:
        read_conversations(file)
    assert str(refused_in_chunks.value) == str(refused.value)
    assert whole.digest == content_digest(file)
    assert (len(whole.dropped), len(whole.mended)) == (12, 6)


def test_a_sample_is_every_nth_record_by_its_own_number(tmp_path):
    file = written(tmp_path, 40)
    lines = Path(file).read_bytes().split(b"\n")
    all_of_it = {talk.source: talk for talk in read_conversations(file, on_bad_row="drop").conversations}
    sample = read_conversations(file, on_bad_row="drop", every=3)
    wanted = [f"{file}, line {number}" for number in range(1, len(lines) + 1, 3)]
    assert [talk.source for talk in sample.conversations] == [name for name in wanted if name in all_of_it]
    assert [all_of_it[talk.source] for talk in sample.conversations] == [*sample.conversations]
    assert len(sample.conversations) > 5
    records = [{"prompt": f"say {number}", "response": "ok"} for number in range(10)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(records))
    for name in ("a.parquet", "a.json"):
        sampled = read_conversations(str(tmp_path / name), every=4).conversations
        assert [talk.source.partition(", ")[2] for talk in sampled] == ["record 1", "record 5", "record 9"]
        assert [talk.messages[0].content for talk in sampled] == ["say 0", "say 4", "say 8"]


def test_conversations_on_disk_are_those_that_were_put_there():
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": [1, 2.5, None, True]}}}
    calling = Message(role="assistant", content="", tool_calls=(call,), reasoning_content="so", loss_weight=0.5)
    result = Message(role="tool", content="3", tool_call_id="1", name="add")
    tools = ({"type": "function", "function": {"name": "add", "parameters": {}}},)
    odd = Conversation(messages=(user("你好 \u0000"), calling, result, assistant("3")), tools=tools, source="a, line 3")
    full = Conversation(messages=(user("hi"), assistant("yo")), source="b", group="g", expect="/y/", tag="t")
    talks = [odd, *toy_conversations(20), full]
    kept = Conversations.of(talks)
    assert list(kept) == talks
    assert list(kept[3:7].only([2, 0])) == [talks[5], talks[3]]
    assert kept.equals(0) != kept.equals(1)
    assert Conversations.of([full]).equals(0) == Conversations.of(
        [Conversation(messages=full.messages, expect="/y/")]
    ).equals(0)


def test_a_store_has_the_same_bytes_in_whatever_batches_its_rows_are_given(tmp_path):
    from components.conversations.chat_formats import load_chat_format

    chat_format = load_chat_format(letter_tokenizer())
    rendered = itertools.cycle([chat_format.render(talk) for talk in toy_conversations(10)])
    entries = [Entry(source=f"line {n}", rendered=next(rendered), keys=("a",)) for n in range(ROWS_PER_CHUNK + 100)]
    write_store(tmp_path / "whole.arrow", entries)
    for size in (1, 7, 1000, 5000):
        parts = [entries[start : start + size] for start in range(0, len(entries), size)]
        write_batches(tmp_path / "parts.arrow", map(batch_of, parts))
        assert (tmp_path / "parts.arrow").read_bytes() == (tmp_path / "whole.arrow").read_bytes()
    assert pa.ipc.open_file(tmp_path / "whole.arrow").num_record_batches == 2
