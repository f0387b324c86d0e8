"""What a trial has left can be loaded anywhere, scores what it scored in training, and talks."""

import json
import os
import shutil
import threading
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import GenerationConfig, PreTrainedTokenizerFast

from components.conversations.chat_formats import load_chat_format
from components.conversations.messages import Message
from components.errors import InputError
from components.experiment.spec import (
    LoraMethod,
    ModelSpec,
)
from components.inference.generate import generate_reply, pieces_of, reply_to, stream_reply
from components.inference.reply_text import ReplyText
from components.models.adapters import attach_lora
from components.models.base.load_base import load_base_model
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.models.load_trained import load_base, load_base_of, load_trained
from tests.support.toy import START, STOP, assistant, user
from tests.support.trials import METHODS, package_without_base

ASKED = [user("say ab"), assistant("ab ab"), user("say cad")]


@pytest.fixture(scope="module")
def base(trials):
    return load_base(ModelSpec(path=str(trials.model)))


# Loading


@pytest.mark.parametrize("name", METHODS)
def test_a_checkpoint_and_its_package_score_what_was_scored_in_training(trials, tmp_path, name):
    checkpoint, eval_loss = trials.trained(name)
    assert trials.loss_of(load_trained(checkpoint)) == pytest.approx(eval_loss, abs=1e-6)
    assert trials.loss_of(load_trained(trials.packaged(name, tmp_path / "package"))) == pytest.approx(
        eval_loss, abs=1e-6
    )


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_an_evaluation_leaves_the_gradients_of_a_quantized_model_as_they_were(trials, quantize):
    base = load_base_model(ModelSpec(path=str(trials.model)), quantize=quantize)
    model = attach_lora(base, LoraMethod(rank=4, quantize=quantize))
    token_ids_BT = torch.arange(4, 20)[None]

    def gradients():
        model.zero_grad()
        model.train()(input_ids=token_ids_BT, labels=token_ids_BT).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if "lora_B" in name}

    before = gradients()
    assert all(gradient.any() for gradient in before.values())
    with torch.no_grad():
        model.eval()(input_ids=token_ids_BT)
    after = gradients()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_the_base_of_something_trained_is_the_base_model(trials, tmp_path, name):
    base = load_base_of(trials.packaged(name, tmp_path / "package"))
    expected = trials.loss_of(load_base(ModelSpec(path=str(trials.model))))
    assert trials.loss_of(base) == expected
    assert expected > trials.trained(name)[1] + 0.1


@pytest.mark.parametrize(
    ("name", "files"),
    [
        ("lora", {"base.json", "spec.json", "adapter/adapter_config.json", "adapter/adapter_model.safetensors"}),
        (
            "full",
            {
                "base.json",
                "spec.json",
                "weights/config.json",
                "weights/generation_config.json",
                "weights/model.safetensors",
            },
        ),
    ],
)
def test_a_package_has_all_that_talking_needs_and_nothing_of_training(trials, tmp_path, name, files):
    directory = trials.packaged(name, tmp_path / "package")
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
    assert {file for file in found if not file.startswith("tokenizer/")} == files
    assert "tokenizer/tokenizer.json" in found


def test_a_base_model_that_is_gone_is_said_with_the_way_out(trials, tmp_path):
    with pytest.raises(ValueError, match=r"is not here: .*gone: no such directory; set TURNWISE_BASE_MODEL to"):
        load_trained(package_without_base(trials, tmp_path, "lora"))


def test_a_base_model_that_moved_is_used_where_the_environment_says(trials, tmp_path, monkeypatch):
    shutil.copytree(trials.model, tmp_path / "elsewhere")
    monkeypatch.setenv("TURNWISE_BASE_MODEL", str(tmp_path / "elsewhere"))
    eval_loss = trials.trained("lora")[1]
    assert trials.loss_of(load_trained(package_without_base(trials, tmp_path, "lora"))) == pytest.approx(
        eval_loss, abs=1e-6
    )


def test_another_base_model_is_refused_by_its_digest(trials, tmp_path, monkeypatch):
    shutil.copytree(trials.model, tmp_path / "other", ignore=shutil.ignore_patterns(".*"))
    config = tmp_path / "other" / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    monkeypatch.setenv("TURNWISE_BASE_MODEL", str(tmp_path / "other"))
    digest = model_digest(trials.model)
    with pytest.raises(
        ValueError, match=rf"other is another one: its digest is sha256:.*with the model of digest {digest}"
    ):
        load_trained(package_without_base(trials, tmp_path, "lora"))


def test_a_full_fine_tune_needs_no_base_model(trials, tmp_path):
    eval_loss = trials.trained("full")[1]
    assert trials.loss_of(load_trained(package_without_base(trials, tmp_path, "full"))) == pytest.approx(
        eval_loss, abs=1e-6
    )


@pytest.mark.parametrize("kind", ["checkpoint", "package"])
@pytest.mark.parametrize("name", ["lora", "full"])
def test_weights_that_lack_a_tensor_are_refused_by_its_name(trials, tmp_path, name, kind):
    directory = tmp_path / "copy"
    if kind == "package":
        trials.packaged(name, directory)
    else:
        shutil.copytree(trials.trained(name)[0], directory)
    file = directory / ("adapter/adapter_model.safetensors" if name == "lora" else "weights/model.safetensors")
    tensors = load_file(file)
    lost = next(key for key in tensors if "layers.1.mlp.up_proj" in key)
    del tensors[lost]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"(only one side has|1 are missing:) .*{lost}"):
        load_trained(directory)


@pytest.mark.parametrize("name", ["lora", "full"])
def test_weights_that_are_cut_short_are_refused(trials, tmp_path, name):
    directory = trials.packaged(name, tmp_path / "package")
    (file,) = (directory / ("adapter" if name == "lora" else "weights")).glob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"package.*: its weights cannot be read \(.*\); a file is cut short"):
        load_trained(directory)


def test_a_reference_made_with_a_relative_path_holds_in_other_directories(trials, monkeypatch, tmp_path):
    monkeypatch.chdir(trials.model.parent)
    reference = BaseReference(model=ModelSpec(path="model"), digest="sha256:", chat_format="auto")
    reference.write(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert BaseReference.read(tmp_path).model.path == str(trials.model)


@pytest.mark.parametrize("name", ["smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"])
def test_a_name_that_means_the_same_everywhere_stays_as_it_is(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    assert BaseReference(model=ModelSpec(path=name), digest="sha256:", chat_format="auto").model.path == name


# Talking


def test_an_untrained_model_answers_with_words_of_its_own_up_to_the_limit(base):
    reply = reply_to(base, ASKED, max_new_tokens=5)
    assert isinstance(reply.text, str)
    assert (reply.new_tokens, reply.stopped) == (5, False)
    assert reply.prompt_tokens == len(base.chat_format.prompt(ASKED))
    assert generate_reply(base, ASKED, max_new_tokens=5) == reply.text


@pytest.fixture
def said(base, monkeypatch):
    """Makes the base model say certain tokens, whatever it is asked, and tells what it was given."""
    given = []

    def say(*token_ids):
        vocabulary = base.model.config.vocab_size

        def head(hidden_BTH):
            logits = torch.zeros(*hidden_BTH.shape[:2], vocabulary)
            logits[:, -1, token_ids[min(len(given), len(token_ids) - 1)]] = 10.0
            given.append(hidden_BTH.shape[1])
            return logits

        monkeypatch.setattr(base.model.lm_head, "forward", head)
        return base

    return say


def ids(text, base):
    return [base.tokenizer.convert_tokens_to_ids(letter) for letter in text]


def test_an_answer_ends_before_its_stop_token(base, said):
    speaker = said(*ids("hi", base), *base.chat_format.stop_token_ids, *ids("x", base))
    reply = reply_to(speaker, ASKED, max_new_tokens=20)
    assert (reply.text, reply.stopped, reply.new_tokens) == ("hi", True, 3)


def test_a_conversation_goes_in_with_all_its_roles(base, monkeypatch):
    seen = []
    generate = base.model.generate
    monkeypatch.setattr(
        base.model, "generate", lambda **given: seen.append(given["input_ids"][0].tolist()) or generate(**given)
    )
    generate_reply(base, [Message(role="system", content="be kind"), *ASKED], max_new_tokens=1)
    turns = ["system\nbe kind", "user\nsay ab", "assistant\nab ab", "user\nsay cad"]
    expected = "".join(f"{START}{turn}{STOP}\n" for turn in turns) + f"{START}assistant\n"
    assert base.tokenizer.decode(seen[0]) == expected


def test_a_streamed_answer_is_the_whole_answer_in_pieces(base, said):
    speaker = said(*ids("你好 ab", base), *base.chat_format.stop_token_ids)
    pieces = list(stream_reply(speaker, ASKED, max_new_tokens=20))
    assert pieces == ["你", "好", " ", "a", "b"]


def test_what_a_stream_returns_is_the_message_it_made(base, said):
    speaker = said(*ids("ab", base), *base.chat_format.stop_token_ids)
    stream = stream_reply(speaker, ASKED, max_new_tokens=20)
    assert [next(stream), next(stream)] == ["a", "b"]
    with pytest.raises(StopIteration) as ended:
        next(stream)
    reply = ended.value.value
    assert reply.message == Message(role="assistant", content="ab")
    assert (reply.text, reply.finish_reason, reply.new_tokens) == ("ab", "stop", 3)
    assert reply.prompt_tokens == len(base.chat_format.prompt(ASKED))


def byte_tokenizer():
    """One byte, one token, so that a Chinese character is three."""
    vocabulary = {token: i for i, token in enumerate([STOP, START, *sorted(ByteLevel.alphabet())])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=STOP, additional_special_tokens=[START])


def test_half_a_character_waits_for_its_other_half(base):
    tokenizer = byte_tokenizer()
    speaker = replace(base, chat_format=load_chat_format(tokenizer, "chatml"), tokenizer=tokenizer)
    token_ids = tokenizer.encode("a你b", add_special_tokens=False)
    assert len(token_ids) == 5
    assert list(pieces_of(iter(token_ids), ReplyText(speaker.chat_format))) == ["a", "你", "b"]
    assert list(pieces_of(iter(token_ids[:3]), ReplyText(speaker.chat_format))) == [
        "a",
        "\ufffd",
    ]  # cut off at the limit: said as it is


def test_who_streams_hears_of_an_error_at_once(base, monkeypatch):
    def broken(hidden):
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(base.model.lm_head, "forward", broken)
    with pytest.raises(InputError, match=r"the model: cannot answer \(no such kernel"):
        list(stream_reply(base, ASKED))
    assert "generate" not in {thread.name for thread in threading.enumerate()}


def test_who_stops_listening_stops_the_model(base, said):
    speaker = said(*ids("a", base))
    stream = stream_reply(speaker, ASKED, max_new_tokens=100_000)
    assert next(stream) == "a"
    stream.close()
    assert "generate" not in {thread.name for thread in threading.enumerate()}


OWN_SETTINGS = [
    {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "do_sample": True, "num_beams": 3},
    {"return_dict_in_generate": True, "output_scores": True},
    {"forced_eos_token_id": 5},
    {"suppress_tokens": [99], "begin_suppress_tokens": [98]},
    {"bad_words_ids": [[99]]},
    {"min_length": 200, "max_length": 3},
    {"stop_strings": ["a"]},
    {"guidance_scale": 3.0},
    {"sequence_bias": [[[7], 50.0]]},
    {"prompt_lookup_num_tokens": 3},
    {"exponential_decay_length_penalty": [1, 9.0]},
    {"max_time": 0.0},
    {"eos_token_id": 7, "pad_token_id": 9},
]


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: "-".join(own))
def test_greedy_answers_do_not_depend_on_the_base_models_own_settings(base, trials, tmp_path, own):
    plain = reply_to(base, ASKED, max_new_tokens=20)
    directory = shutil.copytree(trials.model, tmp_path / "model")
    (directory / "generation_config.json").write_text(json.dumps(own))
    opinionated = load_base(ModelSpec(path=str(directory)))
    assert reply_to(opinionated, ASKED, max_new_tokens=20) == plain
    streamed = load_base(ModelSpec(path=str(directory)))
    assert "".join(stream_reply(streamed, ASKED, max_new_tokens=20)) == plain.text


def test_an_adapted_model_does_not_talk_by_its_base_models_settings_either(trials, tmp_path):
    adapted = load_trained(trials.packaged("lora", tmp_path / "package"))
    plain = reply_to(adapted, ASKED, max_new_tokens=20)
    adapted.model.get_base_model().generation_config = GenerationConfig(stop_strings=["a"], num_beams=3)
    adapted.model.generation_config = GenerationConfig(return_dict_in_generate=True, forced_eos_token_id=5)
    assert reply_to(adapted, ASKED, max_new_tokens=20) == plain


def drawn(base, **settings):
    """The tokens that two hundred answers of one token begin with."""
    torch.manual_seed(0)
    return {reply_to(base, ASKED, max_new_tokens=1, **settings).text for _ in range(200)}


def test_sampling_draws_from_the_whole_distribution_unless_top_p_cuts_it(base, monkeypatch):
    monkeypatch.setattr(base.model.generation_config, "top_k", 1)  # as some models' own settings say
    assert len(drawn(base, temperature=5.0)) > 50  # transformers' default would draw from 50 tokens
    assert len(drawn(base, temperature=1.0, top_p=1e-6)) == 1
