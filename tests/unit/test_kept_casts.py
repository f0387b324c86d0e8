"""A small model's weights are cast to 16 bits once for a whole text, a large one's for every token."""

from dataclasses import replace

import pytest
import torch

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.inference.generate import reply_to
from components.models.load_trained import LoadedModel
from components.scoring import kept_casts
from components.scoring.batched_generation import generate_replies
from components.scoring.kept_casts import casts_kept
from tests.support.casts import Casts
from tests.support.toy import save_letter_tokenizer, user
from tests.support.zoo import family_model

TOKENS = 20


@pytest.fixture
def loaded(tmp_path):
    save_letter_tokenizer(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    return LoadedModel(
        model=family_model("llama").eval().requires_grad_(False),
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, "auto"),
        device=torch.device("cpu"),
        attention="sdpa",
        precision="bf16",
    )


def casts_of_a_reply(loaded):
    with Casts(loaded.model) as casts, casts_kept(loaded):
        reply = reply_to(loaded, [user("abc")], max_new_tokens=TOKENS)
    return casts.count, reply


def test_a_small_model_casts_its_weights_once_and_says_the_same(loaded, monkeypatch):
    kept, reply = casts_of_a_reply(loaded)
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    monkeypatch.setattr(kept_casts, "SMALL", 0)
    repeated, said = casts_of_a_reply(loaded)
    assert repeated >= TOKENS / 2 * kept > 0
    assert reply == said


def test_weights_that_may_be_trained_stay_so_and_float32_is_left_alone(loaded):
    loaded.model.get_input_embeddings().requires_grad_(True)
    casts_of_a_reply(loaded)
    assert [weight.requires_grad for weight in loaded.model.parameters()].count(True) == 1
    with casts_kept(replace(loaded, precision="fp32")):
        assert torch.is_grad_enabled()


def test_the_stretches_of_a_batch_share_their_casts(loaded):
    loaded.model.requires_grad_(True)
    prompts = [loaded.chat_format.prompt([user(asked)]) for asked in ("ab", "abcd", "cba")]
    counts = []
    for new_tokens in (TOKENS, 3 * TOKENS):
        with Casts(loaded.model) as casts:
            generate_replies(loaded, prompts, max_new_tokens=new_tokens, max_batch_tokens=500)
        counts.append(casts.count)
    assert counts[0] == counts[1] > 0
