"""Rows that join and leave a running batch say what they say alone; what goes wrong in one stays in it."""

import random
import string

import pytest
import torch

from components.scoring.running_batch import BatchAbilities, Row, RunningBatch
from tests.support.toy import user
from tests.support.zoo import loaded_family

DRAW = random.Random(2)
ASKED = ["".join(DRAW.choices(string.ascii_letters, k=DRAW.randint(2, 40))) for _ in range(10)]
LENGTHS = [3 + 3 * place for place in range(len(ASKED))]  # so that they leave one after another


class Said(list):
    """A row and what it said; it ends after so many tokens."""

    def __init__(self, loaded, asked, length, **options):
        super().__init__()
        prompt = loaded.chat_format.prompt([user(asked)])
        self.row = Row(prompt=prompt, max_new_tokens=length, take=lambda token: not self.append(token), **options)


def alone(loaded, asked, length, **options):
    said = Said(loaded, asked, length, **options)
    batch = RunningBatch(loaded, BatchAbilities(company="none", leave=False, join=False))
    batch.add([said.row])
    while batch.rows:
        batch.go_on()
    assert len(said) == length
    return list(said)


def drawn(seed):
    """Draws tokens by a generator of its own."""
    generator = torch.Generator().manual_seed(seed)
    return lambda logits_1V: int(torch.multinomial(logits_1V.softmax(-1)[0], 1, generator=generator))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    torch.set_num_threads(1)
    return loaded_family("llama", tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize("name", ["llama", "glm", "gpt2"])
def test_rows_that_come_while_others_are_at_work_say_what_they_say_alone(name, tmp_path):
    torch.set_num_threads(1)
    loaded = loaded_family(name, tmp_path)
    said = [Said(loaded, asked, length) for asked, length in zip(ASKED, LENGTHS, strict=True)]
    waiting, batch, at_once = [one.row for one in said], RunningBatch(loaded), []
    assert batch.abilities.join
    draw = random.Random(3)
    while waiting or batch.rows:
        if waiting and draw.random() < 0.7:
            count = draw.randint(1, 3)
            batch.add(waiting[:count])
            del waiting[:count]
        tokens = draw.randint(1, 6)
        batch.go_on(interrupted=iter([False] * (tokens - 1) + [True] * 99).__next__)
        at_once.append(len(batch.rows))
    assert max(at_once) > 3
    expected = [alone(loaded, asked, length) for asked, length in zip(ASKED, LENGTHS, strict=True)]
    assert [list(one) for one in said] == expected
    assert len({tuple(tokens[:3]) for tokens in expected}) > 1


def test_a_row_draws_the_same_tokens_in_any_company(llama):
    said = [Said(llama, asked, 12, choose=drawn(seed)) for seed, asked in enumerate(ASKED)]
    greedy = Said(llama, ASKED[0], 12)
    batch = RunningBatch(llama)
    batch.add([greedy.row, *(one.row for one in said[:4])])
    batch.go_on(interrupted=lambda: True)
    batch.add([one.row for one in said[4:]])
    while batch.rows:
        batch.go_on()
    for seed, (one, asked) in enumerate(zip(said, ASKED, strict=True)):
        assert list(one) == alone(llama, asked, 12, choose=drawn(seed))
    assert list(greedy) == alone(llama, ASKED[0], 12) != list(said[0])


def test_what_fails_in_a_row_ends_that_row_alone(llama):
    def fail(*_):
        raise ValueError("odd")

    prompt = llama.chat_format.prompt([user("hello")])
    takes = Row(prompt=prompt, max_new_tokens=9, take=fail)
    chooses = Row(prompt=prompt, max_new_tokens=9, take=lambda token: True, choose=fail)
    fine = Said(llama, ASKED[1], 9)
    batch = RunningBatch(llama)
    batch.add([takes, fine.row, chooses])
    while batch.rows:
        batch.go_on()
    assert [str(row.error) for row in (takes, chooses)] == ["odd", "odd"]
    assert fine.row.error is None
    assert list(fine) == alone(llama, ASKED[1], 9)


def test_what_a_batch_will_hold_at_its_end_is_counted_with_its_padding(llama):
    batch = RunningBatch(llama)
    short, long = Said(llama, "a", 5), Said(llama, "a" * 30, 10)
    most = len(long.row.prompt) + 10
    assert batch.fits([long.row], most)
    assert not batch.fits([long.row], most - 1)
    batch.add([short.row])
    assert batch.fits([long.row], 2 * most)
    assert not batch.fits([long.row], 2 * most - 1)


def test_a_model_whose_rows_cannot_join_takes_others_once_all_have_ended(tmp_path):
    torch.set_num_threads(1)
    loaded = loaded_family("falcon_h1", tmp_path)
    batch = RunningBatch(loaded)
    assert not batch.abilities.join
    first, second = Said(loaded, ASKED[0], 4), Said(loaded, ASKED[1], 6)
    batch.add([first.row])
    assert not batch.takes_rows
    while batch.rows:
        batch.go_on(interrupted=lambda: True)
    assert batch.takes_rows
    batch.add([second.row])
    while batch.rows:
        batch.go_on()
    assert [list(first), list(second)] == [alone(loaded, ASKED[0], 4), alone(loaded, ASKED[1], 6)]
