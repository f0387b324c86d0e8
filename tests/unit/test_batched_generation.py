"""Replies of a batch are those of one prompt at a time, whatever the model makes of padding."""

import pytest
import torch

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.experiment.spec import ModelSpec
from components.inference.generate import reply_to
from components.models.load_trained import LoadedModel, load_base
from components.scoring.batched_generation import generate_replies
from components.scoring.padding import company_of
from tests.support.toy import save_letter_tokenizer, tiny_model_directory, user
from tests.support.zoo import family_model

ASKED = [f"say {'abcd' * (number % 5 + 1)}{number}" for number in range(12)]


def family(name, folder):
    save_letter_tokenizer(folder)
    tokenizer = load_tokenizer(folder)
    return LoadedModel(
        model=family_model(name).eval(),
        tokenizer=tokenizer,
        chat_format=load_chat_format(tokenizer, "auto"),
        device=torch.device("cpu"),
        attention="sdpa",
    )


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
    loaded = family(name, tmp_path)
    alone = [reply_to(loaded, [user(asked)], max_new_tokens=12) for asked in ASKED]
    prompts = [loaded.chat_format.prompt([user(asked)]) for asked in ASKED]
    assert company_of(loaded) == company
    assert generate_replies(loaded, prompts, max_new_tokens=12, max_batch_tokens=200) == alone
    assert len({reply.text for reply in alone}) > 1


def test_a_batch_ends_each_reply_at_its_own_stop_token(tmp_path):
    tiny_model_directory(tmp_path / "model", tied=False)
    loaded = load_base(ModelSpec(path=str(tmp_path / "model")))
    with torch.no_grad():  # a head that says its stop token often, and other tokens between
        loaded.model.lm_head.weight[loaded.chat_format.stop_token_ids[0]] *= 3
    alone = [reply_to(loaded, [user(asked)], max_new_tokens=20) for asked in ASKED]
    prompts = [loaded.chat_format.prompt([user(asked)]) for asked in ASKED]
    assert generate_replies(loaded, prompts, max_new_tokens=20, max_batch_tokens=10_000) == alone
    assert len({reply.new_tokens for reply in alone if reply.stopped}) > 1
