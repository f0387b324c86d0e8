"""What is said in a conversation decides for ever whether it is held out, and a model is known by what it was trained on."""

import json
import random
from dataclasses import replace

import pyarrow as pa
import pytest

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Conversation, Message
from components.conversations.readers.data_problems import ConversationError
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.comparable_conversations import find_render_differences, unseen_conversations
from components.data.prepare import prepare
from components.data.split import read_records
from components.data.split_membership import fraction_that_holds_out, fraction_that_leaves, keys_of, mark_of
from components.data.token_store import SCHEMA, Entry, TokenStore, write_store
from components.data.trained_on import TRAINED_ON, keys_digest, read_trained_on, training_keys, write_trained_on
from components.experiment.spec import DataSpec
from components.registry.result import too_few_held_out
from components.storage.open_folder import folder_at
from tests.support.toy import (
    assistant,
    letter_tokenizer,
    save_letter_tokenizer,
    toy_conversations,
    user,
    write_messages_jsonl,
)

SAID = (user("say ab"), assistant("ab ab"))
TALK = Conversation(messages=SAID)


def split_of(folder, conversations, **data):
    path = folder / "data.jsonl"
    write_messages_jsonl(path, conversations)
    return read_records(DataSpec(**{"train": str(path), **data})).split()


def words_of(conversations):
    return {keys_of(conversation)[0] for conversation in conversations}


def numbered(count, start=0):
    """Conversations that all differ."""
    return [Conversation(messages=(user(f"say {n}"), assistant(f"{n}"))) for n in range(start, start + count)]


# Where a conversation goes


def test_where_a_conversation_goes_is_the_same_in_every_version():
    """Another hash would turn what champions were trained on into held-out data."""
    assert keys_of(TALK) == ("4db184aa96764b85c9a65b05a51536e2",)
    assert mark_of(keys_of(TALK), 0) == 0.11245531801137276
    assert keys_of(replace(TALK, group="user 7"))[1] == "4b89b44f7bfd5275f2af497106d2bbb7"
    called = Message(
        role="assistant", content="", tool_calls=({"id": "1", "function": {"name": "f", "arguments": {}}},)
    )
    assert keys_of(Conversation(messages=(user("你"), called))) == ("51dba094213de03d4ba37284e3e65351",)


def test_data_that_grows_moves_no_conversation(tmp_path):
    before = split_of(tmp_path, numbered(1000))
    grown = numbered(1050)
    random.Random(0).shuffle(grown)
    after = split_of(tmp_path, grown)
    assert words_of(before.eval) < words_of(after.eval)
    assert words_of(before.train) < words_of(after.train)
    assert not words_of(after.eval) & words_of(before.train)
    assert (len(before.eval), len(after.eval)) == (100, 103)


def test_marks_are_even_and_a_seed_draws_others():
    marks = [[mark_of(keys_of(each), seed) for each in numbered(4000)] for seed in (0, 1)]
    for drawn in marks:
        tenths = [sum(step / 10 <= mark < (step + 1) / 10 for mark in drawn) for step in range(10)]
        assert all(330 < count < 470 for count in tenths)  # 400 +- 3.7 standard deviations
    both = sum(first < 0.1 and second < 0.1 for first, second in zip(*marks, strict=True))
    assert 18 < both < 65  # 1 % of them


def test_a_larger_fraction_holds_out_more_and_lets_none_go(tmp_path):
    small, large = (words_of(split_of(tmp_path, numbered(400), eval_fraction=share).eval) for share in (0.1, 0.3))
    assert small < large


@pytest.mark.parametrize(
    "other",
    [
        replace(TALK, messages=(Message(role="system", content="Be kind."), *SAID)),
        replace(TALK, messages=(SAID[0], replace(SAID[1], loss_weight=0.5))),
        replace(TALK, tools=({"name": "clock"},)),
        replace(TALK, messages=(SAID[0], replace(SAID[1], reasoning_content="They want it twice."))),
        replace(TALK, source="elsewhere.jsonl, line 7"),
    ],
    ids=["system message", "weight", "tools on offer", "reasoning", "file"],
)
def test_the_same_words_are_the_same_conversation_whatever_stands_around_them(other):
    assert keys_of(other) == keys_of(TALK)


def test_the_same_call_is_the_same_words_whatever_its_id():
    calls = [{"id": name, "type": "function", "function": {"name": "f", "arguments": {"a": 1}}} for name in ("x", "y")]
    one, two = (
        Conversation(messages=(user("q"), Message(role="assistant", content="", tool_calls=(c,)))) for c in calls
    )
    assert keys_of(one) == keys_of(two)
    calls[1]["function"]["arguments"] = {"a": 2}
    assert keys_of(one) != keys_of(two)


def test_words_that_are_held_out_are_not_trained_on_under_another_system_message(tmp_path):
    path = tmp_path / "train.jsonl"
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    path.write_text(
        "\n".join(
            json.dumps({"messages": messages}) for messages in (said, [{"role": "system", "content": "s"}, *said])
        )
        + '\n{"messages": [{"role": "user", "content": "other"}, {"role": "assistant", "content": "words"}]}\n'
    )
    write_messages_jsonl(tmp_path / "eval.jsonl", [Conversation(messages=(user("q"), assistant("a")))])
    split = read_records(DataSpec(train=str(path), eval=str(tmp_path / "eval.jsonl"))).split()
    assert [conversation.messages[0].content for conversation in split.train] == ["other"]
    assert (split.sides.duplicates, split.sides.leaked) == (0, 2)


# Groups


def write_grouped(path, groups):
    lines = [
        {"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}], "group": group}
        for n, group in enumerate(groups)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_conversations_of_a_group_stand_on_one_side(tmp_path):
    write_grouped(tmp_path / "data.jsonl", [n % 40 for n in range(400)])
    split = read_records(DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=0.3)).split()
    held_out, trained = ({each.group for each in side} for side in (split.eval, split.train))
    assert (len(held_out), len(trained)) == (10, 30)
    assert held_out.isdisjoint(trained)
    assert len(split.eval) == 10 * len(held_out)


def test_a_group_that_is_held_out_by_a_file_is_not_trained_on(tmp_path):
    write_grouped(tmp_path / "train.jsonl", ["a", "b", "a", None])
    (tmp_path / "eval.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "group": "a"}\n'
    )
    split = read_records(DataSpec(train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"))).split()
    assert [conversation.group for conversation in split.train] == ["b", None]
    assert split.sides.leaked == 2


def test_a_group_is_a_text_or_a_whole_number_and_may_be_empty(tmp_path):
    write_grouped(tmp_path / "data.jsonl", ["a", 7, "7", None, " "])
    split = read_records(DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=0.5)).split()
    both = [*split.eval, *split.train]
    assert {each.source.split()[-1]: each.group for each in both} == {
        "1": "a",
        "2": "7",
        "3": "7",
        "4": None,
        "5": None,
    }
    write_grouped(tmp_path / "data.jsonl", ["a", ["b"], True])
    with pytest.raises(ConversationError) as caught:
        read_records(DataSpec(train=str(tmp_path / "data.jsonl"))).split()
    assert [(problem.location, problem.text) for problem in caught.value.problems] == [
        ("line 2", '"group" must be a text or a whole number, not list'),
        ("line 3", '"group" must be a text or a whole number, not bool'),
    ]


# Too few on a side


def test_a_fraction_that_holds_out_none_is_an_error_that_names_one_that_does(tmp_path):
    with pytest.raises(ValueError, match="holds out none") as caught:
        split_of(tmp_path, numbered(5), eval_fraction=0.01)
    assert str(caught.value) == (
        "data.eval_fraction=0.01 holds out none of 5 distinct conversations (or groups), for where each goes depends on"
        " itself alone; 0.37 holds out some; or add conversations, or give data.eval"
    )
    assert len(split_of(tmp_path, numbered(5), eval_fraction=0.37).eval) == 1


def test_a_fraction_that_leaves_none_is_an_error_that_names_one_that_does(tmp_path):
    with pytest.raises(ValueError, match="leaves none to train on") as caught:
        split_of(tmp_path, numbered(5), eval_fraction=0.999)
    assert str(caught.value).startswith("data.eval_fraction=0.999 leaves none to train on of 5 distinct conversations")
    assert "; 0.99 leaves some; " in str(caught.value)
    assert len(split_of(tmp_path, numbered(5), eval_fraction=0.99).train) == 1


def test_one_group_alone_cannot_be_split(tmp_path):
    write_grouped(tmp_path / "data.jsonl", ["a", "a", "a"])
    with pytest.raises(ValueError, match=r"1 distinct conversation \(or group of them\) cannot be split"):
        read_records(DataSpec(train=str(tmp_path / "data.jsonl"))).split()


@pytest.mark.parametrize(("count", "expected"), [(1, 0.11), (2, 0.31), (3, 0.51), (4, None), (5, None), (0, None)])
def test_the_fraction_that_would_do_is_the_shortest(count, expected):
    marks = [0.9, 0.5, 0.105, 0.3001, 0.9]
    assert fraction_that_holds_out(count, marks) == expected


@pytest.mark.parametrize(("count", "expected"), [(1, 0.9), (2, 0.9), (3, 0.5), (4, 0.3), (5, None)])
def test_the_fraction_that_leaves_enough_is_the_shortest(count, expected):
    assert fraction_that_leaves(count, [0.9, 0.5, 0.105, 0.3001, 0.9]) == expected


# What a model was trained on


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_letter_tokenizer(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("data")
    write_messages_jsonl(folder / "data.jsonl", toy_conversations(30))
    data = DataSpec(train=str(folder / "data.jsonl"), eval_fraction=0.3, max_tokens=100)
    return prepare(data, model_path=tokenizer, chat_format="auto", storage=folder_at(folder), processes=1)


def test_prepared_data_knows_its_conversations_again(dataset):
    known = words_of(toy_conversations(30))
    assert {key for keys in dataset.train.keys for key in keys} | {
        key for keys in dataset.eval.keys for key in keys
    } == known
    assert [keys_of(dataset.eval.conversation(index)) for index in range(len(dataset.eval))] == dataset.eval.keys
    assert dataset.train.conversation(0) is None  # only the held-out ones may have to be rendered anew


def test_a_kept_conversation_comes_back_as_it_was(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"b": 1.0, "a": [1, None, "\ud83d"]}}}
    talk = Conversation(
        messages=(
            Message(role="system", content="s"),
            user("你好\n"),
            Message(role="assistant", content="", tool_calls=(call,), loss_weight=0.25),
            Message(role="tool", content="{}", tool_call_id="1", name="f"),
            replace(assistant("done"), reasoning_content="That was it."),
        ),
        tools=({"name": "f", "parameters": {"type": "object"}},),
        source="a.jsonl, line 3",
        group="g",
    )
    path = tmp_path / "store.arrow"
    rendered = load_chat_format(letter_tokenizer(), "chatml").render(TALK)
    write_store(path, [Entry(source="a", rendered=rendered, keys=keys_of(talk), conversation=talk)])
    found = TokenStore(path)
    assert found.conversation(0) == talk
    assert list(found.conversation(0).messages[2].tool_calls[0]["function"]["arguments"]) == ["b", "a"]
    assert found.keys == [keys_of(talk)]


def test_a_kept_conversation_has_the_keys_of_a_data_file(tmp_path):
    rendered = load_chat_format(letter_tokenizer(), "chatml").render(TALK)
    path = tmp_path / "store.arrow"
    write_store(path, [Entry(source="a", rendered=rendered, conversation=TALK)])
    with pa.memory_map(str(path)) as file:
        kept = json.loads(pa.ipc.open_file(file).read_all().column("conversation")[0].as_py())
    assert list(kept["messages"][1])[:3] == ["role", "content", "loss"]


def test_what_a_model_was_trained_on_is_kept_beside_it(tmp_path, dataset):
    write_trained_on(dataset.train, tmp_path)
    keys = training_keys(dataset.train)
    assert read_trained_on(tmp_path) == frozenset(keys) == {key for keys in dataset.train.keys for key in keys}
    assert (tmp_path / TRAINED_ON).read_text().splitlines() == [keys_digest(keys), *sorted(keys)]
    assert unseen_conversations(dataset.eval, read_trained_on(tmp_path)) == tuple(range(len(dataset.eval)))
    assert unseen_conversations(dataset.train, read_trained_on(tmp_path)) == ()
    some = {dataset.eval.keys[1][0], dataset.eval.keys[3][0]}
    assert unseen_conversations(dataset.eval, some) == tuple(
        index for index in range(len(dataset.eval)) if index not in (1, 3)
    )


@pytest.mark.parametrize("harm", [lambda lines: lines[:-1], lambda lines: [], lambda lines: [lines[0], "0" * 32]])
def test_a_list_of_what_was_trained_on_that_came_to_harm_is_an_error(tmp_path, dataset, harm):
    write_trained_on(dataset.train, tmp_path)
    path = tmp_path / TRAINED_ON
    path.write_text("\n".join(harm(path.read_text().splitlines())))
    with pytest.raises(ValueError, match=r"trained_on\.txt: cut short or changed"):
        read_trained_on(tmp_path)


def test_a_model_that_is_trained_on_one_of_a_group_knows_the_group(tmp_path):
    path = tmp_path / "store.arrow"
    rendered = load_chat_format(letter_tokenizer(), "chatml").render(TALK)
    talks = [replace(talk, group=group) for talk, group in zip(numbered(3), ["a", "b", None], strict=True)]
    write_store(path, [Entry(source="s", rendered=rendered, keys=keys_of(talk)) for talk in talks])
    earlier = replace(numbered(1, start=9)[0], group="a")
    assert unseen_conversations(TokenStore(path), frozenset(keys_of(earlier))) == (1, 2)


def test_data_prepared_before_keys_were_kept_is_read_and_says_nothing(tmp_path, dataset):
    old = pa.schema([field for field in SCHEMA if field.name not in ("keys", "conversation")])
    path = tmp_path / "store.arrow"
    row = {"token_ids": [1, 2], "target_weights": [0.0, 1.0], "num_targets": 1, "truncated": False, "source": "a"}
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, old) as writer:
        writer.write_batch(pa.RecordBatch.from_pylist([row], schema=old))
    store = TokenStore(path)
    assert (len(store), store.keys, store.conversation(0), training_keys(store)) == (1, None, None, None)
    write_trained_on(store, tmp_path)
    assert read_trained_on(tmp_path) is None
    assert unseen_conversations(store, frozenset()) is None
    assert unseen_conversations(dataset.eval, None) is None
    assert find_render_differences(store, load_chat_format(letter_tokenizer(), "chatml"), 100) is None


# The same tokens


CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def format_of(folder, template):
    save_letter_tokenizer(folder, template)
    return load_chat_format(load_tokenizer(folder), "auto")


def test_another_chat_format_that_gives_equal_tokens_is_comparable(tmp_path, dataset, tokenizer):
    other = format_of(tmp_path, "{# written anew #}" + CHATML)
    assert other.digest() != load_chat_format(load_tokenizer(tokenizer), "auto").digest()
    assert find_render_differences(dataset.eval, other, 100) == []


def test_other_tokens_or_weights_or_a_refusal_are_not_comparable_and_named(tmp_path, dataset):
    spaced = format_of(tmp_path / "spaced", CHATML.replace("'\\n' + m['content']", "'\\n ' + m['content']"))
    sources = [dataset.eval.source(index) for index in range(len(dataset.eval))]
    assert find_render_differences(dataset.eval, spaced, 100) == sources
    refuses = (
        "{% for m in messages %}{% if 'say ac' in m['content'] %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    )
    refused = find_render_differences(dataset.eval, format_of(tmp_path / "refuses", refuses + CHATML), 100)
    talks = {dataset.eval.source(index): dataset.eval.conversation(index) for index in range(len(dataset.eval))}
    assert refused == [s for s in sources if any("say ac" in m.content for m in talks[s].messages)] != []


# Enough to tell


@pytest.mark.parametrize(
    ("count", "fraction", "way_out"),
    [(80, 0.1, "data.eval_fraction=0.27 would do"), (12, 0.4, "add conversations, or give data.eval")],
)
def test_a_search_is_told_before_it_starts_that_too_few_are_held_out(tmp_path, tokenizer, count, fraction, way_out):
    write_messages_jsonl(tmp_path / "data.jsonl", numbered(count, start=10))
    data = DataSpec(train=str(tmp_path / "data.jsonl"), eval_fraction=fraction, max_tokens=100)

    def prepared(data):
        return prepare(data, model_path=tokenizer, chat_format="auto", storage=folder_at(tmp_path), processes=1)

    held_out = len(prepared(data).eval)
    assert too_few_held_out(prepared(data), data) == (
        f"{held_out} conversations held out are too few to tell a better model: the gate needs 20 like these and will promote"
        f" none; {way_out}"
    )
    if count == 80:
        enough = data.model_copy(update={"eval_fraction": 0.27})
        assert (len(prepared(enough).eval), too_few_held_out(prepared(enough), enough)) == (20, None)
