"""From conversations to batches: nothing is lost, split or mixed on the way, and the way can be taken again."""

import itertools
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoModelForCausalLM

from components.conversations.chat_formats.rendered import RenderedConversation
from components.conversations.messages import Conversation
from components.data import prepare as prepare_module
from components.data import process_pool
from components.data.collate import collate
from components.data.packing import pack_rows
from components.data.prepare import prepare
from components.data.sampler import Position, StepSampler, micro_batches
from components.data.split import read_records
from components.data.token_store import ROWS_PER_CHUNK, Entry, TokenStore, write_store
from components.experiment.spec import BatchSpec, DataSpec
from components.storage.open_folder import folder_at
from components.training.evaluate import conversation_losses
from components.training.loss import ScoredModel
from components.training.workers import OneWorker
from tests.support.toy import (
    assistant,
    save_letter_tokenizer,
    tiny_model_directory,
    toy_conversations,
    user,
    write_messages_jsonl,
)

PAD = 0


def rendered(token_ids, target_weights):
    return RenderedConversation(
        token_ids=tuple(token_ids), target_weights=tuple(target_weights), turn_ends=(len(token_ids),)
    )


def store_of(folder, *conversations):
    path = folder / "store.arrow"
    write_store(path, [Entry(source=f"a, line {n}", rendered=each) for n, each in enumerate(conversations, start=1)])
    return TokenStore(path)


# The store


def test_a_store_gives_back_what_was_written_without_copying_it(tmp_path):
    path = tmp_path / "store.arrow"
    count = 2 * ROWS_PER_CHUNK + 3  # three chunks
    expected = [([n, n + 1, n + 2][: 1 + n % 3], [0.0, 1.0, 0.5][: 1 + n % 3]) for n in range(count)]
    write_store(
        path,
        (
            Entry(source=f"a, line {n}", rendered=rendered(*each), truncated=n % 5 == 0)
            for n, each in enumerate(expected)
        ),
    )
    allocated = pa.total_allocated_bytes()
    store = TokenStore(path)
    assert pa.total_allocated_bytes() == allocated  # all of it lies in the mapped file
    assert len(store) == count
    assert [
        (token_ids.tolist(), weights.tolist()) for token_ids, weights in map(store.__getitem__, range(count))
    ] == expected
    assert store.lengths.tolist() == [1 + n % 3 for n in range(count)]
    assert store.num_targets.tolist() == [n % 3 for n in range(count)]
    assert store.total_targets == 2050
    assert (store.source(2049), store.is_truncated(2045), store.is_truncated(2046)) == ("a, line 2049", True, False)
    for beyond in (-1, count):
        with pytest.raises(IndexError):
            store[beyond]


def test_a_store_may_be_empty(tmp_path):
    store = store_of(tmp_path)
    assert (len(store), store.lengths.tolist(), store.total_targets) == (0, [], 0)


def test_a_conversation_is_never_scored_on_its_first_token():
    with pytest.raises(ValueError, match="the first token, and that of a fork, cannot be a target"):
        rendered([11, 12], [1.0, 1.0])


# Batches


def test_a_batch_predicts_the_next_token_of_the_same_conversation_and_nothing_else(tmp_path):
    store = store_of(
        tmp_path,
        rendered([11, 12, 13, 14], [0.0, 0.0, 1.0, 1.0]),
        rendered([21, 22], [0.0, 0.5]),
        rendered([31, 32, 33], [0.0, 1.0, 0.0]),
    )
    batch = collate(store, [(0, 1), (2,)], PAD)
    ignored = -100
    assert batch.token_ids_BT.tolist() == [[11, 12, 13, 14, 21, 22, 0, 0], [31, 32, 33, 0, 0, 0, 0, 0]]
    assert batch.labels_BT.tolist() == [
        [ignored, 13, 14, ignored, 22, ignored, ignored, ignored],
        [32, ignored, ignored, ignored, ignored, ignored, ignored, ignored],
    ]
    assert batch.weights_BT.tolist() == [[0, 1, 1, 0, 0.5, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    assert batch.position_ids_BT.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]]
    assert batch.segment_ids_BT.tolist() == [[1, 1, 1, 1, 2, 2, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0]]
    assert batch.num_targets == 4


def test_rows_are_padded_to_a_multiple_of_eight(tmp_path):
    store = store_of(tmp_path, rendered(range(9), [0.0] + [1.0] * 8))
    assert collate(store, [(0,)], PAD).token_ids_BT.shape == (1, 16)
    assert collate(store, [(0,)], PAD, 64).token_ids_BT.shape == (1, 16)


@pytest.mark.parametrize("max_tokens", [9, 10])
def test_no_row_is_padded_beyond_what_a_model_may_have(tmp_path, max_tokens):
    store = store_of(tmp_path, rendered(range(9), [0.0] + [1.0] * 8))
    batch = collate(store, [(0,)], PAD, max_tokens)
    assert batch.position_ids_BT.tolist() == [list(range(max_tokens))]


def test_no_rows_are_a_batch_without_a_target(tmp_path):
    batch = collate(store_of(tmp_path), [], PAD)
    assert (batch.token_ids_BT.tolist(), batch.num_targets) == ([[PAD] * 8], 0)
    assert batch.position_ids_BT.tolist() == [list(range(8))]


# Packing


def test_packing_neither_loses_nor_repeats_nor_overfills():
    lengths = np.random.default_rng(0).integers(1, 101, size=3000)  # several windows
    order = np.random.default_rng(1).permutation(3000).tolist()
    rows = pack_rows(lengths, order, 100)
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(3000))
    assert max(sum(lengths[index] for index in row) for row in rows) <= 100
    assert lengths.sum() / (100 * len(rows)) > 0.97


def test_packing_fills_rows_by_best_fit_and_keeps_the_order():
    lengths = np.array([3, 6, 4, 7, 2, 8])
    assert pack_rows(lengths, range(6), 10) == [(0, 3), (1, 2), (4, 5)]
    assert pack_rows(lengths, [5, 4, 3, 2, 1, 0], 10) == [(5, 4), (3, 0), (2, 1)]


def test_a_conversation_longer_than_a_row_is_never_split():
    with pytest.raises(ValueError, match="conversation 1 has 11 tokens, and a row holds 10"):
        pack_rows(np.array([3, 11]), [0, 1], 10)


# Steps


def sampler(seed=0, *, packing=True, rows_per_step=4):
    lengths = np.random.default_rng(5).integers(10, 60, size=90)
    return StepSampler(lengths, BatchSpec(packing=packing, rows_per_step=rows_per_step), max_tokens=100, seed=seed)


def walk(steps, position, count):
    taken = []
    for _ in range(count):
        rows, position = steps.next_step(position)
        taken.append(rows)
    return taken, position


@pytest.mark.parametrize("packing", [True, False])
def test_every_epoch_has_each_conversation_exactly_once(packing):
    steps = sampler(packing=packing)
    epochs = [list(itertools.chain.from_iterable(steps.plan(epoch))) for epoch in (0, 1)]
    for rows in epochs:
        assert Counter(itertools.chain.from_iterable(rows)) == Counter(range(90))
    assert epochs[0] != epochs[1]
    assert packing or {len(row) for row in epochs[0]} == {1}


@pytest.mark.parametrize("packing", [True, False])
def test_a_new_sampler_goes_on_from_a_position_as_the_old_one_would(packing):
    per_epoch = len(sampler(packing=packing).plan(0))
    straight, _ = walk(sampler(packing=packing), Position(epoch=0, step=0), 3 * per_epoch)
    for taken in (1, per_epoch - 1, per_epoch, 2 * per_epoch + 1):
        _, position = walk(sampler(packing=packing), Position(epoch=0, step=0), taken)
        rest, end = walk(sampler(packing=packing), position, 3 * per_epoch - taken)
        assert rest == straight[taken:]
        assert end == Position(epoch=3, step=0)


def test_the_order_depends_on_the_seed():
    assert sampler(seed=1).plan(0) == sampler(seed=1).plan(0)
    assert sampler(seed=1).plan(0) != sampler(seed=2).plan(0)


def test_rows_of_one_conversation_stand_beside_others_of_about_their_length():
    steps = sampler(packing=False)
    lengths = [[steps.lengths[index] for row in step for index in row] for step in steps.plan(0)]
    assert max(max(step) - min(step) for step in lengths) < 10  # they range from 10 to 59


@pytest.mark.parametrize("worker_count", [1, 2, 3, 5])
@pytest.mark.parametrize("rows_per_micro_batch", [1, 2, 8])
def test_workers_share_a_step_in_equally_many_micro_batches(worker_count, rows_per_micro_batch):
    rows = [(index,) for index in range(7)]
    shares = [
        micro_batches(rows, worker_rank=rank, worker_count=worker_count, rows_per_micro_batch=rows_per_micro_batch)
        for rank in range(worker_count)
    ]
    assert len({len(share) for share in shares}) == 1
    batches = list(itertools.chain.from_iterable(shares))
    assert sorted(itertools.chain.from_iterable(batches)) == rows  # the same rows, however many workers
    assert max(map(len, batches)) <= rows_per_micro_batch


def test_a_worker_without_rows_left_takes_part_with_an_empty_micro_batch():
    shares = [
        micro_batches([(0,), (1,), (2,)], worker_rank=rank, worker_count=2, rows_per_micro_batch=1) for rank in (0, 1)
    ]
    assert shares == [[[(0,)], [(2,)]], [[(1,)], []]]


# Preparing


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_letter_tokenizer(folder)
    return folder


def prepared(folder, tokenizer, *, chat_format="auto", processes=1, **data):
    return prepare(
        DataSpec(**{"train": str(folder / "train.jsonl"), "max_tokens": 128, **data}),
        model_path=tokenizer,
        chat_format=chat_format,
        storage=folder_at(folder / "storage"),
        processes=processes,
    )


def contents(store):
    """[(token ids, target weights)] of every conversation."""
    return [tuple(array.tolist() for array in store[index]) for index in range(len(store))]


def test_data_is_prepared_once_and_found_again(tmp_path, tokenizer):
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(20))
    first = prepared(tmp_path, tokenizer)
    files = {path: path.stat().st_mtime_ns for path in first.directory.download().iterdir()}
    second = prepared(tmp_path, tokenizer)
    assert (first.reused, second.reused) == (False, True)
    assert (first.directory, first.counts, first.train_digest) == (second.directory, second.counts, second.train_digest)
    assert {path: path.stat().st_mtime_ns for path in first.directory.download().iterdir()} == files
    assert {path.name for path in files if path.name[0] != "."} == {"manifest.json", "train.arrow", "eval.arrow"}
    assert first.directory == folder_at(tmp_path / "storage" / "prepared" / first.digest)


def test_of_two_preparations_at_once_the_slower_takes_the_result_of_the_faster(tmp_path, tokenizer, monkeypatch):
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(20))
    faster = []

    def overtaken(*arguments):
        monkeypatch.setattr(prepare_module, "read_records", read_records)
        faster.append(prepared(tmp_path, tokenizer))
        return read_records(*arguments)

    monkeypatch.setattr(prepare_module, "read_records", overtaken)
    slower = prepared(tmp_path, tokenizer)
    assert slower.directory == faster[0].directory
    assert contents(slower.train) == contents(faster[0].train)
    assert slower.directory.parent.list_names() == [slower.digest]


def test_whatever_changes_a_token_changes_the_digest(tmp_path, tokenizer):
    conversations = toy_conversations(20)
    write_messages_jsonl(tmp_path / "train.jsonl", conversations)
    digests = [prepared(tmp_path, tokenizer).digest]
    digests.append(prepared(tmp_path, tokenizer, max_tokens=127).digest)
    digests.append(prepared(tmp_path, tokenizer, too_long="drop").digest)
    digests.append(prepared(tmp_path, tokenizer, split_seed=1).digest)
    digests.append(prepared(tmp_path, tokenizer, eval_fraction=0.2).digest)
    other = tmp_path / "other"
    save_letter_tokenizer(
        other,
        "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}",
    )
    digests.append(prepared(tmp_path, other).digest)
    assert prepared(tmp_path, other, chat_format="chatml").digest == digests[0]  # the same tokens, by another name
    write_messages_jsonl(tmp_path / "train.jsonl", conversations[:-1])
    digests.append(prepared(tmp_path, tokenizer).digest)
    assert len(set(digests)) == 7


def test_the_split_is_salted_by_its_seed_and_loses_no_conversation(tmp_path, tokenizer):
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(40))
    first, second = (
        prepared(tmp_path, tokenizer, eval_fraction=0.25),
        prepared(tmp_path, tokenizer, eval_fraction=0.25, split_seed=1),
    )
    sources = [[dataset.eval.source(index) for index in range(len(dataset.eval))] for dataset in (first, second)]
    assert [len(held_out) for held_out in sources] == [14, 7]
    assert sources[0] != sources[1]
    all_lines = Counter(f"{tmp_path / 'train.jsonl'}, line {number}" for number in range(1, 41))
    assert Counter(sources[0] + [first.train.source(index) for index in range(len(first.train))]) == all_lines


def test_a_given_eval_file_is_held_out_whole_and_equal_conversations_count_once(tmp_path, tokenizer):
    talks = toy_conversations(6)
    reweighed = Conversation(
        messages=(*talks[0].messages[:-1], assistant(talks[0].messages[-1].content, loss_weight=0.5))
    )
    (tmp_path / "train.jsonl").write_text(
        "\n".join(
            json.dumps(
                {"messages": [{"role": m.role, "content": m.content, "loss": m.loss_weight} for m in talk.messages]}
            )
            for talk in [*talks, talks[3], talks[3], reweighed]
        )
    )
    write_messages_jsonl(tmp_path / "eval.jsonl", [talks[0], talks[1], talks[1]])
    dataset = prepared(tmp_path, tokenizer, eval=str(tmp_path / "eval.jsonl"))
    assert [dataset.train.source(index).split()[-1] for index in range(len(dataset.train))] == ["3", "4", "5", "6"]
    assert [dataset.eval.source(index).split()[-1] for index in range(len(dataset.eval))] == ["1", "2"]
    # talks[3] twice and talks[1] once too often; talks[0], its reweighed twin and talks[1] are held out.
    assert (dataset.counts["duplicates"], dataset.counts["leaked"]) == (3, 3)
    assert "3 duplicates left out, 3 held out and therefore not trained on" in dataset.summary()


SHORT = Conversation(messages=(user("a"), assistant("b")))  # ChatML: 8 tokens and the words, 13 and the words
LONG = Conversation(messages=(user("a"), assistant("b"), user("c" * 50), assistant("d" * 50)))
LONG_AT_ONCE = Conversation(messages=(user("e" * 100), assistant("f")))


def test_what_is_truncated_and_what_is_dropped_is_counted_and_named(tmp_path, tokenizer):
    write_messages_jsonl(tmp_path / "eval.jsonl", [Conversation(messages=(user("x"), assistant("y")))])
    write_messages_jsonl(tmp_path / "train.jsonl", [SHORT, LONG, LONG_AT_ONCE])
    options = {"eval": str(tmp_path / "eval.jsonl"), "max_tokens": 100}
    truncated = prepared(tmp_path, tokenizer, **options)
    assert (truncated.counts["truncated"], truncated.counts["dropped_too_long"]) == (1, 1)
    assert [truncated.train.is_truncated(index) for index in range(2)] == [False, True]
    # LONG begins with SHORT: what is left of it ends with that answer's stop, one newline earlier.
    assert contents(truncated.train)[1][0] == contents(truncated.train)[0][0][:-1]
    assert truncated.counts["train_targets"] == 4
    named = f"{tmp_path / 'train.jsonl'}, line 3: 122 tokens, data.max_tokens is 100"
    assert truncated.left_out == (named,)
    assert prepared(tmp_path, tokenizer, **options).left_out == (named,)  # known to those who reuse it, too
    dropped = prepared(tmp_path, tokenizer, **options, too_long="drop")
    assert (dropped.counts["truncated"], dropped.counts["dropped_too_long"], len(dropped.train)) == (0, 2, 1)
    with pytest.raises(ValueError, match="cannot be used") as caught:
        prepared(tmp_path, tokenizer, **options, too_long="fail")
    way_out = "data.max_tokens is 100; raise it, or set data.too_long to truncate or drop"
    assert str(caught.value) == (
        "data: 2 of 3 conversations cannot be used"
        f"\n  {tmp_path / 'train.jsonl'}, line 2: 144 tokens, {way_out}"
        f"\n  {tmp_path / 'train.jsonl'}, line 3: 122 tokens, {way_out}"
    )
    assert [path.name for path in (tmp_path / "storage" / "prepared").iterdir() if path.name.startswith(".")] == []


def test_bad_rows_that_are_dropped_are_counted_by_record_and_named(tmp_path, tokenizer):
    write_messages_jsonl(tmp_path / "train.jsonl", [SHORT, Conversation(messages=(user(""), user(""))), LONG])
    dataset = prepared(tmp_path, tokenizer, on_bad_row="drop", max_tokens=256, eval_fraction=0.5)
    assert dataset.counts["dropped_bad"] == 1
    assert dataset.left_out == (
        f'{tmp_path / "train.jsonl"}, line 2: message 1 from "user" is empty; message 2 from "user" is empty; message 2 is'
        ' from "user" after "user"; roles must alternate; message 2, the last, is from "user"; the last word must be the'
        " assistant's",
    )


def test_conversations_that_a_chat_format_refuses_fail_together_or_are_dropped(tmp_path):
    no_digits = (
        "{% for m in messages %}{% if '1' in m.content %}{{ raise_exception('no ones') }}{% endif %}"
        "<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    save_letter_tokenizer(tmp_path / "model", no_digits)
    talks = [Conversation(messages=(user(f"say {number}"), assistant("x"))) for number in range(8, 13)]
    write_messages_jsonl(tmp_path / "train.jsonl", talks)
    write_messages_jsonl(tmp_path / "eval.jsonl", [SHORT])
    options = {"eval": str(tmp_path / "eval.jsonl")}
    with pytest.raises(ValueError, match="cannot be used") as caught:
        prepared(tmp_path, tmp_path / "model", **options)
    file = tmp_path / "train.jsonl"
    refused = [f"{file}, line {line}: the chat template of template refuses it: no ones" for line in (3, 4, 5)]
    assert str(caught.value).splitlines() == [
        "data: 3 of 5 conversations cannot be used",
        *(f"  {problem} (data.on_bad_row=drop leaves it out)" for problem in refused),
    ]
    dataset = prepared(tmp_path, tmp_path / "model", **options, on_bad_row="drop")
    assert (dataset.counts["dropped_bad"], dataset.left_out) == (3, tuple(refused))
    assert [dataset.train.source(index).split()[-1] for index in range(len(dataset.train))] == ["1", "2"]


def test_what_cannot_be_read_and_what_cannot_be_rendered_are_said_together(tmp_path, tokenizer):
    lines = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]},
        {"messages": [{"role": "user", "content": "hi"}]},
        {
            "messages": [
                {"role": "user", "content": "hi"},
                {"role": "assistant", "content": "yo", "reasoning_content": "r"},
            ]
        },
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="cannot be used") as caught:
        prepared(tmp_path, tokenizer)
    first, *rest = str(caught.value).splitlines()
    assert first.endswith("1 of 3 conversations cannot be used (data.on_bad_row=drop leaves them out)")
    assert rest[0].startswith("  line 2: ")
    assert rest[1] == "Of those that can be read, 1 cannot be rendered"
    assert rest[2].startswith(
        f"  {tmp_path / 'train.jsonl'}, line 3: message 2: chat_format chatml does not show its reasoning"
    )


@pytest.mark.parametrize(
    ("train", "held_out", "options", "message"),
    [
        (
            [SHORT, SHORT],
            None,
            {},
            "data.train: 1 distinct conversation (or group of them) cannot be split into train and eval; add conversations,"
            " or give data.eval",
        ),
        (
            [SHORT],
            [SHORT],
            {},
            "data.train: every conversation is held out as well, so there is none to train on",
        ),
        (
            [LONG_AT_ONCE],
            [SHORT],
            {"max_tokens": 50},
            "data.train: every conversation was dropped, so none is left\n  ",
        ),
        ([SHORT], [LONG_AT_ONCE], {"max_tokens": 50}, "data.eval: every conversation was dropped, so none is left\n  "),
    ],
)
def test_a_split_without_conversations_is_an_error(tmp_path, tokenizer, train, held_out, options, message):
    write_messages_jsonl(tmp_path / "train.jsonl", train)
    if held_out is not None:
        write_messages_jsonl(tmp_path / "eval.jsonl", held_out)
        options = {**options, "eval": str(tmp_path / "eval.jsonl")}
    with pytest.raises(ValueError, match=r"^data\.") as caught:
        prepared(tmp_path, tokenizer, **options)
    assert str(caught.value).startswith(message)


def test_several_processes_render_what_one_does(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(process_pool, "FEWER_IN_PROCESS", 100)
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(150))
    (tmp_path / "again").mkdir()
    write_messages_jsonl(tmp_path / "again" / "train.jsonl", toy_conversations(150))
    one = prepared(tmp_path, tokenizer, processes=1)
    two = prepared(tmp_path / "again", tokenizer, processes=2)
    assert not two.reused
    assert contents(one.train) == contents(two.train)
    assert contents(one.eval) == contents(two.eval)
    assert one.counts == two.counts


# Isolation


@pytest.mark.parametrize(("rows", "masks"), [([(0,), (1,), (2,)], 0), ([(0, 1), (2,)], 2)])
def test_a_padded_batch_needs_a_mask_only_where_conversations_share_a_row(tmp_path, monkeypatch, rows, masks):
    tiny_model_directory(tmp_path / "model")
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(6))
    store = prepared(tmp_path, tmp_path / "model").train
    assert len({int(store.lengths[index]) for index in range(3)}) > 1
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="sdpa")
    scored = ScoredModel(model, precision="fp32", attention="sdpa", device=torch.device("cpu")).eval()
    scored.look_at_head()
    seen, attend = [], torch.nn.functional.scaled_dot_product_attention

    def noting(*tensors, attn_mask=None, **settings):
        seen.append(attn_mask is not None)
        return attend(*tensors, attn_mask=attn_mask, **settings)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    scored(collate(store, rows, PAD))
    assert len(seen) == model.config.num_hidden_layers == 2
    assert sum(seen) == masks


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_conversation_has_one_loss_whether_packed_padded_or_alone(tmp_path, attention):
    torch.set_num_threads(1)
    tiny_model_directory(tmp_path / "model")
    write_messages_jsonl(tmp_path / "train.jsonl", toy_conversations(12))
    store = prepared(tmp_path, tmp_path / "model").train
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", attn_implementation=attention)
    scored = ScoredModel(model, precision="fp32", attention=attention, device=torch.device("cpu")).eval()

    def losses(rows):
        batch = collate(store, rows, PAD)
        with torch.no_grad():
            losses_N, (rows_N, columns_N) = scored.losses(batch)
        sums = {index: 0.0 for row in rows for index in row}
        for loss, row, segment in zip(
            losses_N.tolist(), rows_N.tolist(), batch.segment_ids_BT[rows_N, columns_N].tolist(), strict=True
        ):
            sums[rows[row][segment - 1]] += loss
        return sums

    alone = {index: losses([(index,)])[index] for index in range(len(store))}
    packed = pack_rows(store.lengths, range(len(store)), 256)
    assert {len(row) for row in packed} >= {2, 3}
    assert losses(packed) == pytest.approx(alone, abs=1e-5)
    assert losses([(index,) for index in range(len(store))]) == pytest.approx(alone, abs=1e-5)
    evaluated = conversation_losses(scored, store, OneWorker(), max_tokens=256, rows_per_batch=2, pad_token_id=PAD)
    assert {loss.index: loss.loss_sum for loss in evaluated} == pytest.approx(alone, abs=1e-5)
    assert {loss.index: loss.num_targets for loss in evaluated} == dict(enumerate(store.num_targets.tolist()))
