"""A small model's weights are cast to 16 bits once for a whole text, a large one's for every token."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from components.conversations.messages import Conversation
from components.inference.generate import reply_to
from components.registry import verification_worker
from components.registry.probes import Probe
from components.scoring import kept_casts, score_model
from components.scoring.batched_generation import generate_replies
from components.scoring.kept_casts import casts_kept
from tests.support.casts import Casts
from tests.support.toy import assistant, user
from tests.support.zoo import loaded_family

TOKENS = 20


@pytest.fixture
def loaded(tmp_path):
    loaded = replace(loaded_family("llama", tmp_path), precision="bf16")
    loaded.model.requires_grad_(False)
    return loaded


def kept_by(loaded, work):
    """Whether each weight was cast once at most."""
    with Casts(loaded.model) as casts:
        work()
    assert casts.copied
    return casts.count == len(casts.copied)


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


def test_the_proof_keeps_casts_while_probes_are_answered(loaded):
    probe = Probe(messages=({"role": "user", "content": "abc"},))
    request = SimpleNamespace(probes=(probe, probe), more_questions=(probe,), judged=True, max_new_tokens=TOKENS)
    assert kept_by(loaded, lambda: verification_worker._answer_probes(loaded, request))
    assert kept_by(loaded, lambda: verification_worker._said(loaded, request, ()))
    assert not kept_by(loaded, lambda: reply_to(loaded, [user("abc")], max_new_tokens=TOKENS))


def test_casts_are_kept_for_answers_and_not_for_their_scores(loaded, monkeypatch):
    """A score may be a user's function, which computes with a model of its own."""
    states = []

    def numbers_of(plan, questions, replies):
        states.append((len(replies), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return {}

    monkeypatch.setattr(score_model, "numbers_of", numbers_of)
    plan = SimpleNamespace(generate=SimpleNamespace(max_new_tokens=TOKENS))
    asked = [(index, Conversation(messages=(user(text), assistant("d")))) for index, text in enumerate(("abc", "ab"))]

    def work():
        score_model.score_model(loaded, asked, 2, plan, max_tokens=100, max_batch_tokens=500)

    assert kept_by(loaded, work)
    assert states == [(2, True, False)]


def test_weights_are_frozen_again_after_an_error(loaded):
    with pytest.raises(KeyError), casts_kept(loaded):
        raise KeyError
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert torch.is_grad_enabled()
