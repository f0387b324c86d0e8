"""Replies of a batch are those of one prompt at a time, whatever the model makes of padding."""

import copy
import random
import string
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from components.inference.generate import reply_to
from components.scoring.batched_generation import generate_replies
from components.scoring.padding import company_of
from components.scoring.running_batch import STRETCH, BatchAbilities
from tests.support.toy import user
from tests.support.zoo import loaded_family

DRAW = random.Random(1)
ASKED = ["".join(DRAW.choices(string.ascii_letters, k=DRAW.randint(2, 24))) for _ in range(12)]


# rwkv keeps the states of a batch apart no better than padding: what it says alone is what it says in use.
@pytest.mark.parametrize(
    ("name", "company"),
    [
        ("llama", "any"),
        ("glm", "any"),
        ("gpt2", "any"),
        ("falcon_h1", "any"),
        ("recurrent_gemma", "equally long"),
        ("rwkv", "none"),
    ],
)
def test_a_batch_says_what_each_prompt_gets_alone(name, company, tmp_path):
    torch.set_num_threads(1)
    loaded = loaded_family(name, tmp_path)
    alone = [reply_to(loaded, [user(asked)], max_new_tokens=12) for asked in ASKED]
    prompts = [loaded.chat_format.prompt([user(asked)]) for asked in ASKED]
    assert company_of(loaded) == company
    assert generate_replies(loaded, prompts, max_new_tokens=12, max_batch_tokens=200) == alone
    assert len({reply.text for reply in alone}) > 1


def test_a_batch_ends_each_reply_at_its_own_stop_token(tmp_path):
    loaded = loaded_family("llama", tmp_path)
    prompts = [loaded.chat_format.prompt([user(asked)]) for asked in ASKED]
    said = generate_replies(loaded, prompts, max_new_tokens=20, max_batch_tokens=10_000)
    letter = Counter("".join(reply.text[2:] for reply in said)).most_common(1)[0][0]
    stopping = copy.copy(loaded.chat_format)
    stopping.stop_token_ids = (loaded.tokenizer.convert_tokens_to_ids(letter),)
    loaded = replace(loaded, chat_format=stopping)
    stopped = generate_replies(loaded, prompts, max_new_tokens=20, max_batch_tokens=10_000)
    assert stopped == [reply_to(loaded, [user(asked)], max_new_tokens=20) for asked in ASKED]
    assert [reply.text for reply in stopped] == [reply.text.partition(letter)[0] for reply in said]
    assert len({reply.new_tokens for reply in stopped if reply.stopped}) > 1
    assert not all(reply.stopped for reply in stopped)


# The state of falcon_h1's recurrent layers has no rows that a cache can lose.
@pytest.mark.parametrize(("name", "leave"), [("llama", True), ("glm", True), ("gpt2", True), ("falcon_h1", False)])
def test_a_reply_that_has_ended_leaves_the_batch_where_the_cache_allows_it(name, leave, tmp_path):
    loaded = loaded_family(name, tmp_path)
    prompts = [loaded.chat_format.prompt([user(asked)]) for asked in ASKED]
    said = generate_replies(loaded, prompts, max_new_tokens=40, max_batch_tokens=10_000)
    early = Counter(letter for reply in said for letter in set(reply.text[:6]))
    letter = min(early, key=lambda letter: abs(early[letter] - len(prompts) / 2))  # about half of the replies end soon
    stopping = copy.copy(loaded.chat_format)
    stopping.stop_token_ids = (loaded.tokenizer.convert_tokens_to_ids(letter),)
    loaded = replace(loaded, chat_format=stopping)
    with rows_seen(loaded.model) as rows:
        stopped = generate_replies(loaded, prompts, max_new_tokens=40, max_batch_tokens=10_000)
    assert len({reply.new_tokens // STRETCH for reply in stopped}) > 1
    assert BatchAbilities.of(loaded).leave == leave
    assert max(rows) == len(prompts)
    assert (rows[-1] < len(prompts)) == leave
    assert stopped == [reply_to(loaded, [user(asked)], max_new_tokens=40) for asked in ASKED]


@contextmanager
def rows_seen(model):
    """How many rows each forward pass had."""
    rows = []
    hook = model.register_forward_pre_hook(
        lambda _, args, named: rows.append(len(args[0] if args else named["input_ids"])), with_kwargs=True
    )
    try:
        yield rows
    finally:
        hook.remove()
