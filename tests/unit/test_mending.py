"""Conversations whose messages are in an odd order are mended by leaving out as little as possible, which is counted."""

import json
import random
from itertools import pairwise

import pytest

from components.conversations.messages import Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.readers.mending import mended_sentence
from components.conversations.readers.read import read_conversations
from components.data.prepare import PreparedDataset, prepare
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import DataSpec
from components.planning.data_preview import preview_experiment
from components.storage.open_folder import folder_at
from tests.support.toy import assistant, save_letter_tokenizer, user

SYSTEM = {"role": "system", "content": "be"}
USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLING, RESULT = {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}
GOOD = [USER, ASSISTANT]
BE = Message(role="system", content="be")
CALLED, THREE = Message(role="assistant", content="", tool_calls=(CALL,)), Message(role="tool", content="3")


def jsonl(path, *conversations):
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    return str(path)


def mended(tmp_path, messages):
    """(messages, what was done, kinds) of one conversation, beside another one which is in order."""
    read = read_conversations(jsonl(tmp_path / "a.jsonl", GOOD, messages), on_bad_row="drop")
    assert read.dropped == ()
    return list(read.conversations[1].messages), [str(each) for each in read.mended], read.mended_kinds


def dropped(tmp_path, messages):
    read = read_conversations(jsonl(tmp_path / "a.jsonl", GOOD, messages), on_bad_row="drop")
    assert (len(read.conversations), read.mended, read.mended_kinds) == (1, (), {})
    return [problem.text for problem in read.dropped]


@pytest.mark.parametrize(
    ("messages", "kept", "done", "kinds"),
    [
        (
            [*GOOD, USER],
            [user("hi"), assistant("yo")],
            "message 3 is cut, for no answer follows",
            {"unanswered": 1},
        ),
        (
            [SYSTEM, *GOOD, SYSTEM, USER, USER],
            [BE, user("hi"), assistant("yo")],
            "message 4, message 5 and message 6 are cut, for no answer follows",
            {"unanswered": 1},
        ),
        (
            [USER, CALLING, RESULT],
            [user("hi"), CALLED],
            "message 3 is cut, for no answer follows",
            {"unanswered": 1},
        ),
        (
            [ASSISTANT, *GOOD],
            [user("hi"), assistant("yo")],
            "message 1 is cut, for no question is before it",
            {"unasked": 1},
        ),
        (
            [SYSTEM, ASSISTANT, ASSISTANT, *GOOD],
            [BE, user("hi"), assistant("yo")],
            "message 2 and message 3 are cut, for no question is before it",
            {"unasked": 1},
        ),
        (
            [SYSTEM, CALLING, RESULT, RESULT, ASSISTANT, SYSTEM, *GOOD],
            [BE, BE, user("hi"), assistant("yo")],
            "message 2, message 3, message 4 and message 5 are cut, for no question is before it",
            {"unasked": 1},
        ),
        (
            [USER, {"role": "human", "content": "ho"}, ASSISTANT],
            [user("hi\n\nho"), assistant("yo")],
            "message 1 and message 2 become one",
            {"questions": 1},
        ),
        (
            [SYSTEM, USER, USER, USER, ASSISTANT, USER, USER, ASSISTANT],
            [BE, user("hi\n\nhi\n\nhi"), assistant("yo"), user("hi\n\nhi"), assistant("yo")],
            "message 2, message 3 and message 4 become one; message 6 and message 7 become one",
            {"questions": 1},
        ),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, USER, ASSISTANT],
            [user("ab\n\nhi"), assistant("yo")],
            "message 1 and message 2 become one",
            {"questions": 1},
        ),
        (
            [USER, {**ASSISTANT, "loss": 0.5}, {"role": "gpt", "content": "ya", "weight": 0.5}],
            [user("hi"), assistant("yo\n\nya", loss_weight=0.5)],
            "message 2 and message 3 become one",
            {"answers": 1},
        ),
        (
            [USER, {**ASSISTANT, "reasoning": "who?"}, CALLING, RESULT, ASSISTANT],
            [
                user("hi"),
                Message(role="assistant", content="yo", tool_calls=(CALL,), reasoning_content="who?"),
                THREE,
                assistant("yo"),
            ],
            "message 2 and message 3 become one",
            {"answers": 1},
        ),
        (
            [ASSISTANT, USER, USER, ASSISTANT, ASSISTANT, USER],
            [user("hi\n\nhi"), assistant("yo\n\nyo")],
            "message 6 is cut, for no answer follows; message 1 is cut, for no question is before it; message 2 and message 3"
            " become one; message 4 and message 5 become one",
            {"answers": 1, "questions": 1, "unanswered": 1, "unasked": 1},
        ),
    ],
)  # fmt: skip
def test_an_odd_order_is_mended_where_bad_rows_are_dropped(tmp_path, messages, kept, done, kinds):
    assert mended(tmp_path, messages) == (kept, [f"line 2: {done}"], kinds)
    with pytest.raises(ConversationError) as caught:
        read_conversations(jsonl(tmp_path / "a.jsonl", GOOD, messages))
    assert caught.value.problems[-1].text.endswith(f"; with data.on_bad_row=drop {done}")
    assert sum("on_bad_row" in problem.text for problem in caught.value.problems) == 1


ALTERNATE = "roles must alternate"
AFTER = f'message 3 is from "assistant" after "assistant"; {ALTERNATE}'


@pytest.mark.parametrize(
    ("messages", "problems"),
    [
        # Nothing scored would be left.
        ([USER], ['message 1, the last, is from "user"; the last word must be the assistant\'s']),
        ([ASSISTANT], ['message 1 is from "assistant"; a conversation must begin with the user']),
        (
            [ASSISTANT, USER],
            [
                'message 1 is from "assistant"; a conversation must begin with the user',
                'message 2, the last, is from "user"; the last word must be the assistant\'s',
            ],
        ),
        (
            [ASSISTANT, USER, {**ASSISTANT, "loss": 0}],
            ['message 1 is from "assistant"; a conversation must begin with the user'],
        ),
        # What would have to be guessed.
        ([USER, {**ASSISTANT, "loss": 0}, ASSISTANT], [AFTER]),
        ([USER, CALLING, ASSISTANT], [AFTER]),
        ([USER, ASSISTANT, {**ASSISTANT, "reasoning": "who?"}], [AFTER]),
        (
            [{**USER, "name": "Ann"}, {**USER, "name": "Bob"}, ASSISTANT],
            [f'message 2 is from "user" after "user"; {ALTERNATE}'],
        ),
        ([USER, SYSTEM, USER, ASSISTANT], [f'message 3 is from "user" after "user"; {ALTERNATE}']),
        # What is wrong otherwise, too.
        (
            [USER, {**USER, "train": True}, ASSISTANT],
            [
                'message 2 from "user" has train: True; only what an assistant says is scored',
                f'message 2 is from "user" after "user"; {ALTERNATE}',
            ],
        ),
        ([USER, RESULT, ASSISTANT], ['message 2 is from "tool", but no tool was called before it']),
        (
            [ASSISTANT, RESULT, *GOOD],
            [
                'message 1 is from "assistant"; a conversation must begin with the user',
                'message 2 is from "tool", but no tool was called before it',
            ],
        ),
        (
            [USER, {**USER, "content": " "}, ASSISTANT],
            ['message 2 from "user" is empty', f'message 2 is from "user" after "user"; {ALTERNATE}'],
        ),
        (
            [{**USER, "los": 1}, ASSISTANT, USER],
            [
                'message 3, the last, is from "user"; the last word must be the assistant\'s',
                'message 1 has the unknown key "los"; did you mean "loss"? (data.unknown_keys=ignore reads on without it)',
            ],
        ),
        (
            [USER, {**ASSISTANT, "loss": "x"}, {**ASSISTANT, "loss": "y"}],
            [
                "message 2 has the loss weight 'x'; it must be 0, or a number from 1e-06 to 1e+06",
                "message 3 has the loss weight 'y'; it must be 0, or a number from 1e-06 to 1e+06",
                AFTER,
            ],
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_mended_is_dropped_with_all_its_problems(tmp_path, messages, problems):
    assert dropped(tmp_path, messages) == problems


def test_a_conversation_in_order_is_never_changed(tmp_path):
    whole = [SYSTEM, USER, CALLING, RESULT, RESULT, ASSISTANT, SYSTEM, USER, {**ASSISTANT, "loss": 0}, USER, CALLING]
    read = [read_conversations(jsonl(tmp_path / "a.jsonl", whole), on_bad_row=way) for way in ("fail", "drop")]
    assert read[0].conversations == read[1].conversations
    assert len(read[1].conversations[0].messages) == 11
    assert read[1].mended == ()


def test_whatever_the_order_what_is_mended_is_in_order(tmp_path):
    chance = random.Random(0)
    kinds = [SYSTEM, *[USER] * 4, *[ASSISTANT] * 3, CALLING, RESULT, {**ASSISTANT, "loss": 0}]
    conversations = [chance.choices(kinds, k=chance.randint(1, 6)) for _ in range(1000)]
    read = read_conversations(jsonl(tmp_path / "a.jsonl", *conversations), on_bad_row="drop")
    lines = {int(each.location.split()[1]) for each in read.mended}
    bad = {int(problem.location.split()[1]) for problem in read.dropped}
    assert lines.isdisjoint(bad)
    assert (len(read.conversations) + len(bad), len(lines) > 150, len(bad) > 500) == (1000, True, True)
    for conversation in read.conversations:
        roles = [message.role for message in conversation.messages if message.role != "system"]
        assert (roles[0], roles[-1]) == ("user", "assistant")
        pairs = list(pairwise(roles))
        assert ("user", "user") not in pairs
        assert ("assistant", "assistant") not in pairs
        assert any(message.role == "assistant" and message.loss_weight > 0 for message in conversation.messages)


def test_a_sentence_counts_each_kind():
    counts = {"unanswered": 2, "questions": 1}
    assert mended_sentence(counts, 3) == "3 mended (2 lost an unanswered end, 1 with merged questions)"
    every = {"unanswered": 1200, "unasked": 1, "questions": 1, "answers": 4}
    assert mended_sentence(every, 1203) == (
        "1,203 mended (1,200 lost an unanswered end, 1 lost a beginning without a question, 1 with merged questions,"
        " 4 with merged answers)"
    )


# Prepared data


def words(*letters):
    return [[{**USER, "content": letter}, ASSISTANT] for letter in letters]


def test_prepared_data_and_its_manifest_say_what_was_mended(tmp_path):
    save_letter_tokenizer(tmp_path / "model")
    one, two, three, *others = words("a", "b", "c", "d", "e", "f")
    train = jsonl(tmp_path / "a.jsonl", [*one, USER], [USER, *two], *others)
    held_out = jsonl(tmp_path / "b.jsonl", [*three, USER], [USER])
    data = DataSpec(train=train, eval=held_out, on_bad_row="drop")
    folder = folder_at(tmp_path / "runs")
    first = prepare(data, model_path=tmp_path / "model", chat_format="chatml", storage=folder)
    again = prepare(data, model_path=tmp_path / "model", chat_format="chatml", storage=folder)
    for dataset in (first, again):
        assert (dataset.counts["mended"], dataset.counts["dropped_bad"]) == (3, 1)
        assert dataset.mended_kinds == {"questions": 1, "unanswered": 2}
        assert dataset.mended == (
            f"{train}, line 1: message 3 is cut, for no answer follows",
            f"{train}, line 2: message 1 and message 2 become one",
            f"{held_out}, line 1: message 3 is cut, for no answer follows",
        )
        assert dataset.summary().endswith(
            ", 1 dropped as unusable, 3 mended (2 lost an unanswered end, 1 with merged questions)"
        )
    manifest = json.loads(first.directory.read_text("manifest.json"))
    assert (manifest["mended"], manifest["mended_kinds"]) == (list(first.mended), first.mended_kinds)
    del manifest["mended"], manifest["mended_kinds"], manifest["counts"]["mended"]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    old = PreparedDataset.open(folder_at(tmp_path / "old"))  # prepared before conversations were mended
    assert (old.mended, "mended" in old.summary()) == ((), False)


def test_the_preview_says_what_was_mended(toy_search):
    file = toy_search / "data.jsonl"
    with file.open("a") as lines:
        lines.write(json.dumps({"messages": [*GOOD, USER]}) + "\n")
    preview = preview_experiment(load_experiment("toy.yaml", ["data.on_bad_row=drop"]))
    summary, _, *others = preview.remarks
    assert summary.endswith(", 1 mended (1 lost an unanswered end)")
    assert others == ["data.jsonl, line 9: message 3 is cut, for no answer follows"]
