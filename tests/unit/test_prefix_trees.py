"""A conversation as a prefix tree of tokens: merged, cut, stored, laid out as rows, and as separate rows."""

import random

import numpy as np
import pytest

from components.conversations.chat_formats.rendered import (
    Fork,
    RenderedConversation,
    merge_sequences,
    sequences_of,
)
from components.conversations.chat_formats.truncation import fit_length
from components.data.collate import collate
from components.data.rows import SeparateRows, rows_of
from components.data.sampler import StepSampler
from components.data.token_store import Entry, TokenStore, write_store
from components.data.tree_layout import depths_of, subtree_ends_of
from components.experiment.spec import BatchSpec

# A template that shows only the newest thought (8, 9): questions are 11.., 21.., answers 41.., 51.., and 2 is the stop.
THINKING = [
    ([1, 11, 3, 8, 41, 2], [0, 0, 0, 1, 1, 1]),
    ([1, 11, 3, 41, 2, 1, 21, 3, 9, 51, 2], [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1]),
]
TREE = merge_sequences(THINKING)
PATH = RenderedConversation(token_ids=(1, 11, 3, 41, 2), target_weights=(0, 0, 0, 1, 1), turn_ends=(5,))


def store_of(tmp_path, *rendered):
    path = tmp_path / "data.arrow"
    write_store(path, [Entry(source=f"record {n}", rendered=each) for n, each in enumerate(rendered)])
    return TokenStore(path)


def visible(ends):
    """What each token sees, by the rule of Batch."""
    return [[j for j in range(i + 1) if i < ends[j]] for i in range(len(ends))]


def test_sequences_that_begin_alike_share_their_beginning():
    assert TREE.token_ids == (1, 11, 3, 8, 41, 2, 41, 2, 1, 21, 3, 9, 51, 2)
    assert TREE.forks == (Fork(start=6, depth=3),)
    assert TREE.target_weights == (0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1)
    assert TREE.turn_ends == (6, 14)
    assert TREE.longest_path == 11


def test_sequences_that_only_append_are_one_path():
    path = merge_sequences(
        [([1, 11, 3, 41, 2], [0, 0, 0, 1, 1]), ([1, 11, 3, 41, 2, 1, 21, 3, 51, 2], [0] * 8 + [1, 1])]
    )
    assert path.forks == ()
    assert path.token_ids == (1, 11, 3, 41, 2, 1, 21, 3, 51, 2)
    assert path.target_weights == (0, 0, 0, 1, 1, 0, 0, 0, 1, 1)


def test_a_rewritten_beginning_falls_apart_into_two_trees():
    rendered = merge_sequences([([1, 11, 41], [0, 0, 1]), ([7, 11, 41], [0, 0, 1])])
    assert rendered.forks == (Fork(3, 0),)
    assert depths_of(6, rendered.forks).tolist() == [0, 1, 2, 0, 1, 2]
    assert visible(subtree_ends_of(6, rendered.forks)) == [[0], [0, 1], [0, 1, 2], [3], [3, 4], [3, 4, 5]]


def test_a_token_predicts_one_target_though_two_prompts_are_equal():
    rendered = merge_sequences([([1, 11, 41, 2], [0, 0, 1, 1]), ([1, 11, 51, 2], [0, 0, 1, 1])])
    assert rendered.token_ids == (1, 11, 41, 2, 11, 51, 2)
    assert rendered.forks == (Fork(4, 1),)


def test_tokens_see_their_own_path_only():
    depths, seen = depths_of(14, TREE.forks).tolist(), visible(subtree_ends_of(14, TREE.forks))
    assert depths == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10]
    assert seen[5] == [0, 1, 2, 3, 4, 5]
    assert seen[6] == [0, 1, 2, 6]
    assert seen[13] == [0, 1, 2, 6, 7, 8, 9, 10, 11, 12, 13]


def test_a_branch_cannot_begin_with_a_target():
    with pytest.raises(ValueError, match="that of a fork, cannot be a target"):
        RenderedConversation(token_ids=(1, 2, 3), target_weights=(0, 1, 1), turn_ends=(3,), forks=(Fork(2, 1),))


def random_sequences(generator):
    """Answers after prompts that repeat, change or cut what came before."""
    sequences, history = [], []
    for _ in range(generator.randint(1, 6)):
        history = history[: generator.randint(0, len(history))] if generator.random() < 0.3 else history
        prompt = [*history, *(generator.randint(0, 3) for _ in range(generator.randint(1, 4)))]
        answer = [generator.randint(0, 3) for _ in range(generator.randint(1, 4))]
        sequences.append(([*prompt, *answer], [0.0] * len(prompt) + [1.0] * len(answer)))
        history = prompt + answer[generator.randint(0, len(answer)) :]
    return sequences


@pytest.mark.parametrize("seed", range(50))
def test_every_sequence_comes_back_out_of_the_tree(seed):
    sequences = random_sequences(random.Random(seed))
    rendered = merge_sequences(sequences)
    depths = depths_of(len(rendered.token_ids), rendered.forks)
    seen = visible(subtree_ends_of(len(rendered.token_ids), rendered.forks))
    for (token_ids, weights), end in zip(sequences, rendered.turn_ends, strict=True):
        path = seen[end - 1]
        assert [rendered.token_ids[node] for node in path] == token_ids
        assert depths[path].tolist() == list(range(len(token_ids)))
        scored = weights.index(1.0)
        assert [rendered.target_weights[node] for node in path][scored:] == weights[scored:]
    assert rendered.num_targets == sum(sum(weight > 0 for weight in weights) for _, weights in sequences)


def test_a_tree_is_cut_after_a_turn():
    assert fit_length(TREE, 14, truncate=True) == TREE
    cut = fit_length(TREE, 13, truncate=True)
    assert cut.token_ids == (1, 11, 3, 8, 41, 2)
    assert cut.forks == ()
    assert cut.turn_ends == (6,)
    assert fit_length(TREE, 5, truncate=True) is None


def test_a_path_longer_than_the_models_context_is_cut_like_too_many_tokens():
    assert fit_length(TREE, 14, truncate=True, max_depth=11) == TREE
    assert fit_length(TREE, 14, truncate=True, max_depth=10) == TREE.cut(6)
    assert fit_length(TREE, 14, truncate=False, max_depth=10) is None
    assert fit_length(TREE, 14, truncate=True, max_depth=5) is None
    later = merge_sequences([*THINKING, ([1, 61, 2], [0, 1, 1])])
    assert fit_length(later, 99, truncate=True, max_depth=10) == TREE.cut(
        6
    )  # a short path behind a long one goes with it
    assert fit_length(PATH, 5, truncate=True, max_depth=5) == PATH
    assert fit_length(PATH, 5, truncate=True, max_depth=4) is None


def test_a_store_keeps_forks(tmp_path):
    store = store_of(tmp_path, PATH, TREE)
    assert store.has_forks
    assert (store.forks(0), store.forks(1)) == ((), TREE.forks)
    assert not store_of(tmp_path, PATH).has_forks


def test_a_row_of_paths_has_no_mask_of_its_own(tmp_path):
    assert collate(store_of(tmp_path, PATH, PATH), [(0, 1)], pad_token_id=0).subtree_ends_BT is None


def test_a_packed_row_with_a_tree(tmp_path):
    batch = collate(store_of(tmp_path, PATH, TREE), [(0, 1), (0,)], pad_token_id=0)
    assert batch.token_ids_BT.shape == (2, 24)
    assert batch.position_ids_BT[0].tolist() == [
        0,
        1,
        2,
        3,
        4,
        0,
        1,
        2,
        3,
        4,
        5,
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        13,
        14,
        15,
    ]
    seen = visible(batch.subtree_ends_BT[0].tolist())
    assert seen[4] == [0, 1, 2, 3, 4]
    assert seen[5] == [5]
    assert seen[11] == [5, 6, 7, 11]
    assert seen[19] == [19]  # padding
    labels = batch.labels_BT[0].tolist()
    assert [(at, label) for at, label in enumerate(labels) if label >= 0] == [
        (2, 41), (3, 2), (7, 8), (8, 41), (9, 2), (15, 9), (16, 51), (17, 2)
    ]  # fmt: skip
    assert visible(batch.subtree_ends_BT[1].tolist())[4] == [0, 1, 2, 3, 4]


def test_separate_rows_repeat_what_is_shared_and_score_it_once(tmp_path):
    store = store_of(tmp_path, PATH, TREE)
    rows = rows_of(store, separate=True)
    assert isinstance(rows, SeparateRows)
    assert rows.lengths.tolist() == [5, 6, 11]
    assert rows.num_targets.tolist() == [2, 3, 3]
    assert rows.total_targets == store.total_targets == 8
    assert [rows.conversation_of(row) for row in range(3)] == [0, 1, 1]
    token_ids, weights = rows[2]
    assert token_ids.tolist() == THINKING[1][0]
    assert weights.tolist() == THINKING[1][1]


def test_a_store_of_paths_needs_no_separate_rows(tmp_path):
    store = store_of(tmp_path, PATH)
    assert rows_of(store, separate=True) is store
    assert rows_of(store_of(tmp_path, TREE), separate=False).lengths.tolist() == [14]


def test_sequences_of_a_path_are_the_path():
    assert [sequence.spans for sequence in sequences_of(5, ())] == [((0, 5),)]
    assert np.array_equal(depths_of(5, ()), np.arange(5))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("separate", [True, False])
def test_the_store_knows_how_many_tokens_and_targets_the_batches_of_a_step_have(tmp_path, separate, packing):
    """So no worker asks the others: see Trainer.draw."""
    store = rows_of(store_of(tmp_path, TREE, PATH, TREE, PATH, PATH), separate=separate)
    batch = BatchSpec(rows_per_step=2, rows_per_micro_batch=1, packing=packing)
    for rows in StepSampler(store.lengths, batch, max_tokens=32, seed=0).plan(0):
        batches = [collate(store, [row], 0, 32) for row in rows]
        indices = [index for row in rows for index in row]
        assert sum(batch.num_targets for batch in batches) == store.num_targets[indices].sum()
        assert sum(int((batch.segment_ids_BT > 0).sum()) for batch in batches) == store.lengths[indices].sum()
