"""A merged model is the adapter beside its base, whatever the adapter sits on; if not, nobody gets it."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.experiment.spec import LoraMethod
from components.inference.merge_check import MergeCheck, check_merge, divergence, fixed_rows, next_tokens
from components.models.adapters import attach_lora, detach_lora, merge, save_adapter
from components.models.load_causal_lm import load_causal_lm
from components.registry.checked_export import ExportRequest, export_model
from tests.support.tiny_models import base_model, logits, trained_a_little
from tests.support.toy import toy_conversations, write_messages_jsonl
from workflows.export import main


def adapter_on(directory, target, **method):
    """A saved adapter that has learned something."""
    model = trained_a_little(attach_lora(base_model(directory), LoraMethod(rank=4, alpha=64.0, **method)))
    save_adapter(model, target)
    return logits(model)


def export(capsys, *arguments):
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


TARGETS = [("lm_head",), ("embed_tokens",), ("lm_head", "embed_tokens"), ("q_proj", "lm_head")]


@pytest.mark.parametrize("method", [{}, {"dora": True}, {"rslora": True}], ids=["lora", "dora", "rslora"])
@pytest.mark.parametrize("targets", TARGETS, ids=",".join)
def test_an_adapter_on_a_shared_matrix_is_exported_as_the_model_it_is(tiny_model, tmp_path, capsys, targets, method):
    expected = adapter_on(tiny_model, tmp_path / "adapter", target_modules=targets, **method)
    assert (expected - logits(base_model(tiny_model))).abs().max() > 0.05
    export(capsys, tmp_path / "adapter", "--base", tiny_model, "--out", tmp_path / "out")
    whole = load_causal_lm(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(whole), expected, rtol=0, atol=1e-5)
    assert whole.config.tie_word_embeddings is False
    assert whole.get_output_embeddings().weight is not whole.get_input_embeddings().weight


def test_a_model_without_an_adapter_on_the_shared_matrix_stays_tied(tiny_model, tmp_path, capsys):
    adapter_on(tiny_model, tmp_path / "adapter", target_modules=("q_proj", "up_proj"))
    export(capsys, tmp_path / "adapter", "--base", tiny_model, "--out", tmp_path / "out")
    whole = load_causal_lm(tmp_path / "out", dtype=torch.float32)
    assert whole.config.tie_word_embeddings is True
    assert whole.get_output_embeddings().weight is whole.get_input_embeddings().weight


GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}


@pytest.mark.parametrize("targets", [("lm_head",), ("wte",), ("c_attn", "lm_head", "wte")], ids=",".join)
def test_a_family_that_names_its_matrices_otherwise_is_untied_too(tmp_path, targets):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", **GPT2))
    model = trained_a_little(attach_lora(base, LoraMethod(rank=4, alpha=64.0, target_modules=targets)))
    expected = logits(model)
    merge(model).save_pretrained(tmp_path)
    torch.testing.assert_close(logits(load_causal_lm(tmp_path, dtype=torch.float32)), expected, rtol=0, atol=1e-5)


def test_a_head_that_was_trained_as_a_whole_is_merged_without_the_embeddings(tiny_model, tmp_path, capsys):
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"], task_type="CAUSAL_LM")
    model = get_peft_model(base_model(tiny_model), config)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.add_(
            0.1 * torch.randn(112, 32, generator=torch.Generator().manual_seed(0))
        )
    expected = logits(trained_a_little(model))
    model.save_pretrained(tmp_path / "adapter")
    export(capsys, tmp_path / "adapter", "--base", tiny_model, "--out", tmp_path / "out")
    whole = load_causal_lm(tmp_path / "out", dtype=torch.float32)
    torch.testing.assert_close(logits(whole), expected, rtol=0, atol=1e-5)


def rows_of(directory):
    return fixed_rows(load_chat_format(load_tokenizer(directory)))


def test_a_merge_into_the_shared_matrix_is_measured_and_refused_with_both_numbers(tiny_model):
    method = LoraMethod(rank=4, alpha=640.0, target_modules=("lm_head",))
    model = trained_a_little(attach_lora(base_model(tiny_model), method))
    rows = rows_of(tiny_model)
    expected = next_tokens(model, rows)
    naive = divergence(expected, next_tokens(model.merge_and_unload(), rows))  # peft's own merge changes the embeddings
    assert naive.mean > 0.005
    with pytest.raises(ValueError, match=r"another one than the adapter beside its base: .* and at most 0\.005 nats"):
        check_merge(naive)


def test_the_bound_of_a_quantized_base_is_one_of_its_own(tiny_model):
    rows = rows_of(tiny_model)
    one = next_tokens(base_model(tiny_model), rows)
    apart = divergence(one, one).model_copy(update={"mean": 0.1})
    check_merge(apart, quantized=True)
    with pytest.raises(ValueError, match=r"0\.1 nats apart on average"):
        check_merge(apart)
    with pytest.raises(ValueError, match="beside its quantized base: nan nats"):
        check_merge(apart.model_copy(update={"mean": float("nan")}), quantized=True)


def test_a_loss_that_merging_changes_is_refused_with_both_losses():
    apart = MergeCheck(adapter_loss=3.88, merged_loss=3.26, num_targets=100)  # better, and still another model
    with pytest.raises(ValueError, match=r"3\.8800 nats per target with the adapter, 3\.2600 merged"):
        apart.check(quantized=False)
    MergeCheck(adapter_loss=3.88, merged_loss=3.8799, num_targets=100).check(quantized=False)


@pytest.mark.parametrize(("dtype", "most"), [("fp32", 1e-6), ("bf16", 0.005)])
def test_what_rounding_costs_is_measured_and_small(tiny_model, tmp_path, capsys, dtype, most):
    adapter_on(tiny_model, tmp_path / "adapter")
    result = export(capsys, tmp_path / "adapter", "--base", tiny_model, "--out", tmp_path / "out", "--dtype", dtype)
    assert abs(result["divergence"]["mean"]) < most
    assert result["divergence"]["num_positions"] > 100


def test_weights_beyond_float16_are_refused_before_anything_is_written(tiny_model, tmp_path, capsys):
    model = base_model(tiny_model)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = 70000.0
    model.save_pretrained(tmp_path / "large")
    load_tokenizer(tiny_model).save_pretrained(tmp_path / "large")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "large"), "--out", str(tmp_path / "out"), "--dtype", "fp16"])
    assert "up_proj.weight has weights beyond what torch.float16 can hold" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_files_that_are_another_model_are_taken_away_again(tiny_model, tmp_path, capsys, monkeypatch):
    adapter_on(tiny_model, tmp_path / "adapter")
    monkeypatch.setattr("components.inference.merge_check.MAX_DIFFERENCE", -1.0)
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "adapter"), "--base", str(tiny_model), "--out", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert "the merged model is another one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", ["missing.jsonl", "long.jsonl"])
def test_bad_data_of_a_merge_leaves_an_empty_target_where_it_is(tiny_model, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    adapter_on(tiny_model, tmp_path / "adapter")
    write_messages_jsonl(tmp_path / "long.jsonl", toy_conversations(2))
    (tmp_path / "out").mkdir()
    request = ExportRequest(
        source=str(tmp_path / "adapter"), target=tmp_path / "out", base=str(tiny_model), data=data, max_tokens=2
    )
    with pytest.raises(ValueError, match=r"missing\.jsonl|fits into 2 tokens; give a larger max_tokens"):
        export_model(request)
    assert list((tmp_path / "out").iterdir()) == []


def test_detached_adapters_on_both_uses_of_a_shared_matrix_leave_it_as_it_was(tiny_model):
    base = base_model(tiny_model)
    before = logits(base)
    method = LoraMethod(rank=4, target_modules=("lm_head", "embed_tokens"))
    detached = detach_lora(trained_a_little(attach_lora(base, method)))
    assert torch.equal(logits(detached), before)
    assert detached.get_output_embeddings().weight is detached.get_input_embeddings().weight
