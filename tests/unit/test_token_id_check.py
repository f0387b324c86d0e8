"""Every token that a model is given has a row in its embeddings, and what has none is said before it costs a worker."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from components.conversations.messages import Conversation
from components.data.token_store import Entry, TokenStore, write_store
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import ModelSpec
from components.inference.generate import reply_to, stream_reply
from components.models.load_trained import load_base
from components.search.prepare_search import prepare_search
from components.training.evaluate import score
from tests.support.toy import assistant, letter_tokenizer, toy_conversations, user, write_messages_jsonl

TOKENS = len(letter_tokenizer())
EXPERIMENT = """
name: toy
model: {path: %(folder)s/model}
data: {train: %(folder)s/train.jsonl, eval: %(folder)s/eval.jsonl, max_tokens: 128}
trial: {budget: {epochs: 1}}
search: {trials: 1, space: {lora: {method: {kind: lora}}}}
storage: {path: %(folder)s/runs}
tracking: {uri: "sqlite:///%(folder)s/mlflow.db"}
"""
WAY_OUT = (
    "; take the tokenizer it was published with, or give each token a row (transformers: model.resize_token_embeddings(%d),"
    " then save it)"
)


ENDS = "{% for message in messages %}{{ message.role + ': ' + message.content + eos_token }}{% endfor %}"
TEMPLATE = ENDS + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"


def model_with(folder, rows, *, added=(), template=None, **special):
    """A model with so many rows, and the letter tokenizer, maybe with tokens more."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=rows, **sizes)).save_pretrained(folder)
    tokenizer = letter_tokenizer(template)
    tokenizer.add_tokens(list(added))
    tokenizer.add_special_tokens(special)
    tokenizer.save_pretrained(folder)


def experiment(folder, *, train="", eval=""):
    """Over a few toy conversations, and one more of each split with such an answer."""
    for split, said in (("train", train), ("eval", eval)):
        more = Conversation(messages=(user("say a"), assistant(f"a{said}")))
        write_messages_jsonl(folder / f"{split}.jsonl", [*toy_conversations(4, seed=len(split)), more])
    (folder / "toy.yaml").write_text(EXPERIMENT % {"folder": folder})
    return load_experiment(folder / "toy.yaml")


def opened(spec):
    """What is told at opening."""
    messages = []
    prepare_search(spec, on_message=messages.append).lock.close()
    return "\n".join(messages)


def refused(spec):
    with pytest.raises(ValueError, match="rows") as caught:
        prepare_search(spec)
    return str(caught.value)


@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_token_of_either_split_without_a_row_is_named_before_anything_starts(tmp_path, split):
    model_with(tmp_path / "model", TOKENS - 3)
    assert refused(experiment(tmp_path, **{split: "里 and 哪"})) == (
        f"model.path={tmp_path / 'model'}: its embeddings have {TOKENS - 3} rows, and there are tokens without one:"
        f' "哪" ({TOKENS - 2}) is in the data, "里" ({TOKENS - 1}) is in the data' + WAY_OUT % TOKENS
    )


def test_a_stop_or_a_padding_token_without_a_row_is_named_though_no_data_holds_it(tmp_path):
    model_with(tmp_path / "model", TOKENS, pad_token="<padding>")
    assert refused(experiment(tmp_path)) == (
        f"model.path={tmp_path / 'model'}: its embeddings have {TOKENS} rows, and there are tokens without one:"
        f' "<padding>" ({TOKENS}) fills up rows' + WAY_OUT % (TOKENS + 1)
    )
    model_with(tmp_path / "model", TOKENS, template=TEMPLATE, eos_token="<stop>")
    assert f'"<stop>" ({TOKENS}) ' in refused(experiment(tmp_path))


def test_tokens_that_nobody_uses_are_told_of_and_rows_that_no_token_has_are_not(tmp_path):
    """Gemma 3 1B, for one, was published with a token more than it has rows."""
    model_with(tmp_path / "model", TOKENS, added=[f"<tool{number}>" for number in range(7)])
    first = ", ".join(f'"<tool{number}>" ({TOKENS + number})' for number in range(5))
    assert (
        f"Warning: model.path={tmp_path / 'model'}: its embeddings have {TOKENS} rows, and the tokenizer has tokens without"
        f" one: {first} and 2 more; the data has none of them, and a prompt that has one will be refused"
    ) in opened(experiment(tmp_path))
    model_with(tmp_path / "model", TOKENS + 64)
    assert "Warning" not in opened(experiment(tmp_path))


def test_a_model_that_cannot_end_a_turn_is_not_loaded_for_talking(tmp_path):
    model_with(tmp_path, TOKENS, template=TEMPLATE, eos_token="<stop>")
    with pytest.raises(ValueError, match=rf'"<stop>" \({TOKENS}\) ends a turn'):
        load_base(ModelSpec(path=str(tmp_path)))


def test_only_tokens_that_have_an_embedding_row_are_accepted(tmp_path):
    model_with(tmp_path / "model", TOKENS - 3)
    loaded = load_base(ModelSpec(path=str(tmp_path / "model")))
    assert reply_to(loaded, [user("say a")], max_new_tokens=2).new_tokens > 0
    named = rf'"里" \({TOKENS - 1}\) is in the prompt'
    with pytest.raises(ValueError, match=named):
        reply_to(loaded, [user("里")])
    with pytest.raises(ValueError, match=named):
        list(stream_reply(loaded, [user("里")]))
    talk = Conversation(messages=(user("say a"), assistant("里")))
    write_store(tmp_path / "data.arrow", [Entry(source="talk", rendered=loaded.chat_format.render(talk))])
    with pytest.raises(ValueError, match=rf'"里" \({TOKENS - 1}\) is in the data'):
        score(loaded, TokenStore(tmp_path / "data.arrow"), max_tokens=64, rows_per_batch=1)
