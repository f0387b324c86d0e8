"""LoRA adapters go from the original layout to Glm's and back, and add the same to the weights."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from components.experiment.spec import LoraMethod
from components.models.adapters import attach_lora, load_adapter, save_adapter
from components.models.chatglm.adapter_conversion import (
    adapter_to_glm,
    adapter_to_original,
    glm_targets,
    is_original_adapter,
)
from components.models.chatglm.load_original import load_original
from tests.support.toy_chatglm import FREQUENCIES, formula_directory, formula_weights, original_adapter, parity


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    torch.set_num_threads(1)
    return formula_directory(tmp_path_factory.mktemp("original"))


def load(directory):
    return load_original(directory, dtype=torch.float32, attention="sdpa")


def logits(model):
    with torch.no_grad():
        return model(torch.tensor([parity()["ids"]]), use_cache=False).logits


def merged_directory(directory, tensors, factor_of):
    """The original's own weights plus factor x B x A of an adapter in its layout."""
    formula_directory(directory)
    weights = formula_weights()
    for key in [key for key in tensors if key.endswith("lora_A.weight")]:
        module = key.removesuffix(".lora_A.weight").removeprefix("base_model.model.")
        b = tensors[key.replace("lora_A", "lora_B")]
        weights[f"{module}.weight"] += factor_of(module) * b @ tensors[key]
    for name in ("part-1.safetensors", "part-2.safetensors"):
        keys = [key for key in load_file(directory / name) if key != FREQUENCIES]
        save_file({key: weights[key] for key in keys}, directory / name)
    return directory


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_an_adapter_of_the_original_layout_does_on_glm_what_it_did_there(original, tmp_path, suffix):
    tensors = original_adapter(tmp_path / "theirs", suffix=suffix)
    expected = logits(load(merged_directory(tmp_path / "merged", tensors, lambda module: 8 / 4)))
    assert is_original_adapter(tmp_path / "theirs")
    base = load(original)
    adapter_to_glm(tmp_path / "theirs", tmp_path / "ours", base.config)
    assert not is_original_adapter(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["down_proj", "gate_up_proj", "k_proj", "o_proj", "q_proj", "v_proj"]
    assert (config["r"], config["lora_alpha"], config["rank_pattern"], config["alpha_pattern"]) == (4, 8, {}, {})
    before = logits(base)
    adapted = load_adapter(base, tmp_path / "ours")
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=2e-5)
    assert (expected - before).abs().max() > 0.1


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    "targets", [("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"), ("q_proj", "v_proj")], ids=["all", "qv"]
)
def test_an_adapter_trained_on_glm_does_the_same_in_the_original_layout(original, tmp_path, targets, rslora):
    torch.manual_seed(0)
    adapted = attach_lora(load(original), LoraMethod(rank=4, alpha=6.0, target_modules=targets, rslora=rslora))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    expected = logits(adapted.eval())
    save_adapter(adapted, tmp_path / "ours")
    adapter_to_original(tmp_path / "ours", tmp_path / "theirs", adapted.config)
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    blocks = 3 if len(targets) == 4 else 2
    if not rslora:
        fused = [config["rank_pattern"].get("query_key_value", config["r"])]
        fused.append(config["alpha_pattern"].get("query_key_value", config["lora_alpha"]))
        assert fused == [4 * blocks, 6 * blocks]

    def factor_of(module):
        leaf = module.rpartition(".")[2]
        rank = config["rank_pattern"].get(leaf, config["r"])
        alpha = config["alpha_pattern"].get(leaf, config["lora_alpha"])
        return alpha / (rank**0.5 if rslora else rank)

    tensors = load_file(tmp_path / "theirs" / "adapter_model.safetensors")
    merged = merged_directory(tmp_path / "merged", tensors, factor_of)
    torch.testing.assert_close(logits(load(merged)), expected, rtol=0, atol=2e-5)
    adapter_to_glm(tmp_path / "theirs", tmp_path / "back", adapted.config)
    back = PeftModel.from_pretrained(load(original), tmp_path / "back")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=2e-5)


def test_blocks_with_other_ranks_and_alphas_are_joined_exactly(original, tmp_path):
    adapted = attach_lora(load(original), LoraMethod(rank=4, alpha=6.0, target_modules=("q_proj", "k_proj", "v_proj")))
    save_adapter(adapted, tmp_path / "ours")
    tensors = load_file(tmp_path / "ours" / "adapter_model.safetensors")
    generator = torch.Generator().manual_seed(0)
    for key in tensors:
        rank = 2 if "k_proj" in key else 4
        shape = (rank, tensors[key].shape[1]) if "lora_A" in key else (tensors[key].shape[0], rank)
        tensors[key] = torch.randn(shape, generator=generator) * 0.1
    save_file(tensors, tmp_path / "ours" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    config |= {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"k_proj": 7.0, "v_proj": 1.5}}
    (tmp_path / "ours" / "adapter_config.json").write_text(json.dumps(config))
    expected = logits(PeftModel.from_pretrained(load(original), tmp_path / "ours"))
    adapter_to_original(tmp_path / "ours", tmp_path / "theirs", adapted.config)
    adapter_to_glm(tmp_path / "theirs", tmp_path / "back", adapted.config)
    back = PeftModel.from_pretrained(load(original), tmp_path / "back")
    torch.testing.assert_close(logits(back), expected, rtol=0, atol=2e-5)


def test_target_modules_may_be_named_in_the_original_s_words():
    assert glm_targets(("query_key_value", "dense", "q_proj")) == ("q_proj", "k_proj", "v_proj", "o_proj")


def test_all_linear_adapts_every_linear_layer_but_the_head(original):
    adapted = attach_lora(load(original), LoraMethod(rank=2))
    leaves = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_" in name}
    assert leaves == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"}


@pytest.mark.parametrize(
    ("settings", "what"),
    [({"peft_type": "PREFIX_TUNING"}, "kind PREFIX_TUNING"), ({"use_dora": True}, "kind DORA")],
)
def test_adapters_of_other_kinds_are_refused(original, tmp_path, settings, what):
    original_adapter(tmp_path / "theirs", **settings)
    with pytest.raises(ValueError, match=what):
        adapter_to_glm(tmp_path / "theirs", tmp_path / "ours", load(original).config)


def test_an_adapter_of_a_model_of_another_size_is_refused(original, tmp_path):
    original_adapter(tmp_path / "theirs")
    config = load(original).config
    config.num_attention_heads = 8
    with pytest.raises(ValueError, match=r"query_key_value has 128 rows, and must have 128 \+ 2 x 32"):
        adapter_to_glm(tmp_path / "theirs", tmp_path / "ours", config)


def test_a_directory_without_an_adapter_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"no adapter; it has neither adapter_model\.safetensors nor"):
        is_original_adapter(tmp_path)
