"""A base model is what its files say, to the last weight: whatever is missing, renamed or of another kind is refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec
from components.models.adapters import attach_lora, load_adapter, load_adapter_state, save_adapter
from components.models.base.load_base import check_base, load_base_model, resolve_model
from components.models.load_causal_lm import check_weights, load_causal_lm
from components.models.load_trained import load_trained
from components.training.checkpoint import load_weights
from tests.support.toy_chatglm import formula_directory

LAYER = "model.layers.1.mlp.up_proj.weight"


def changed(directory, target, change):
    """The model with other weights: what `change` makes of them, by name."""
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns(".*"))
    file = target / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return target


def configured(directory, target, **values):
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns(".*"))
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **values}))
    return target


def with_prefix(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


def without_a_weight(weights):
    return {name: tensor for name, tensor in weights.items() if name != LAYER}


def quantized_by_gptq(weights):
    """As GPTQ's releases have it: the packed weight, its zeros and scales in place of the weight."""
    layer = LAYER.removesuffix(".weight")
    packed = {f"{layer}.{name}": torch.ones(4, 64) for name in ("qweight", "qzeros", "scales")}
    return {**without_a_weight(weights), **packed}


REFUSED = {
    "a layer's weight is missing": (
        without_a_weight,
        r"1 are missing: model\.layers\.1\.mlp\.up_proj\.weight\. Perhaps a file is missing or cut",
    ),
    "torch.compile": (
        with_prefix("_orig_mod."),
        r"21 are missing: lm_head\.weight.*; 20 are not the model's: _orig_mod\.model\.embed_tokens\.weight"
        r".*save the model inside \(model\._orig_mod\)",
    ),
    "DDP": (with_prefix("module."), r"save the model inside \(model\.module\)"),
    "peft": (with_prefix("base_model.model."), r"merge them \(merge_and_unload\)"),
    "base layers": (
        lambda weights: {name.replace("up_proj.", "up_proj.base_layer."): each for name, each in weights.items()},
        r"2 are missing: .*2 are not the model's: .*up_proj\.base_layer\.weight.*merge them",
    ),
    "GPTQ": (quantized_by_gptq, r"a quantized release; name the unquantized release, and let method\.quantize"),
    "one number for a matrix": (
        lambda weights: {**weights, LAYER: torch.zeros(1)},
        r"1 have another shape: model\.layers\.1\.mlp\.up_proj\.weight is \[1\] and must be \[64, 32\]",
    ),
    "one column for a matrix": (
        lambda weights: {**weights, LAYER: torch.zeros(64, 1)},
        r"up_proj\.weight is \[64, 1\] and must be \[64, 32\]",
    ),
    "a layer too many": (
        lambda weights: {**weights, "model.layers.2.mlp.up_proj.weight": torch.zeros(64, 32)},
        r"1 are not the model's: model\.layers\.2.*config\.json promises too little",
    ),
    "no embeddings": (
        lambda weights: {name: each for name, each in weights.items() if "embed" not in name},
        r"2 are missing: lm_head\.weight, model\.embed_tokens\.weight",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_files_without_the_model_are_refused_before_a_weight_is_read(tiny_model, tmp_path, case):
    change, message = REFUSED[case]
    base = ModelSpec(path=str(changed(tiny_model, tmp_path / "model", change)))
    with pytest.raises(ValueError, match=message):
        check_base(base)
    with pytest.raises(ValueError, match=message):
        load_base_model(base)
    with pytest.raises(ValueError, match=message):
        load_base_model(base, as_stored=True)


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_a_base_that_is_quantized_while_it_loads_is_compared_too(tiny_model, tmp_path, quantize):
    broken = ModelSpec(path=str(changed(tiny_model, tmp_path / "model", without_a_weight)))
    with pytest.raises(ValueError, match=r"1 are missing: model\.layers\.1\.mlp\.up_proj\.weight"):
        load_base_model(broken, quantize=quantize)


def test_a_configuration_of_another_kind_of_model_is_refused(tiny_model, tmp_path):
    other = configured(
        tiny_model, tmp_path / "model", model_type="gpt_neox", architectures=["GPTNeoXForCausalLM"], head_dim=None
    )
    with pytest.raises(ValueError, match=r"model_type in config\.json \(gpt_neox\) is another model's"):
        check_base(ModelSpec(path=str(other)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"tie_word_embeddings": False}, r"1 are missing: lm_head\.weight\."),
        ({"num_hidden_layers": 3}, r"9 are missing: model\.layers\.2\..*config\.json promises too much"),
        ({"num_hidden_layers": 1}, r"9 are not the model's: model\.layers\.1\."),
        ({"vocab_size": 113}, r"embed_tokens\.weight is \[112, 32\] and must be \[113, 32\]"),
    ],
    ids=["untied", "more layers", "fewer layers", "more tokens"],
)
def test_a_configuration_that_says_other_sizes_than_the_files_is_refused(tiny_model, tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        check_base(ModelSpec(path=str(configured(tiny_model, tmp_path / "model", **values))))


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "compressed-tensors", "mxfp4", "bitsandbytes"])
def test_a_quantized_release_is_refused_when_it_is_named(tiny_model, tmp_path, method):
    quantized = configured(tiny_model, tmp_path / "model", quantization_config={"quant_method": method})
    with pytest.raises(ValueError, match=rf"quantized \({method}\).*unquantized release, and let method\.quantize"):
        resolve_model(ModelSpec(path=str(quantized)), weights=False)


def test_a_quantization_of_a_part_of_the_model_is_refused_too(tiny_model, tmp_path):
    part = {"quantization_config": {"quant_method": "awq"}}
    with pytest.raises(ValueError, match=r"quantized \(awq\)"):
        resolve_model(ModelSpec(path=str(configured(tiny_model, tmp_path / "model", text_config=part))))


def test_an_adapter_beside_a_configuration_is_no_base_model(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model")
    save_adapter(attach_lora(load_base_model(ModelSpec(path=str(tiny_model))), LoraMethod(rank=2)), tmp_path / "model")
    with pytest.raises(ValueError, match=r"adapter_config\.json lies beside config\.json"):
        resolve_model(ModelSpec(path=str(tmp_path / "model")))


def test_an_index_that_names_a_file_that_is_not_there_is_refused_with_its_name(tiny_model, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(tiny_model, broken)
    (broken / "model.safetensors").rename(broken / "model-00001-of-00002.safetensors")
    weight_map = dict.fromkeys(
        load_file(broken / "model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors"
    )
    index = {"metadata": {}, "weight_map": {**weight_map, "lm_head.weight": "model-00002-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"a weight file that is not there: .*model-00002-of-00002\.safetensors"):
        check_base(ModelSpec(path=str(broken)))


def test_a_directory_without_weights_is_refused(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(ValueError, match="no weights that can be read"):
        check_base(ModelSpec(path=str(tmp_path / "model")))


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(tiny_model, tmp_path, number):
    def change(weights):
        weights[LAYER][3, 5] = number
        return weights

    damaged = ModelSpec(path=str(changed(tiny_model, tmp_path / "model", change)))
    with pytest.raises(ValueError, match=r"up_proj\.weight holds numbers that are not finite"):
        load_base_model(damaged)


def test_an_original_chatglm3_is_compared_without_reading_a_weight(tmp_path):
    check_base(ModelSpec(path=str(formula_directory(tmp_path / "whole"))))
    fewer = formula_directory(tmp_path / "fewer", num_layers=1)
    with pytest.raises(ValueError, match="is in no model with this config"):
        check_base(ModelSpec(path=str(fewer)))


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
WIDE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 64}
OLD = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
FAMILIES = {
    "llama": WIDE,
    "qwen2": WIDE,
    "qwen3": {**WIDE, "head_dim": 8},
    "mistral": WIDE,
    "gemma2": {**WIDE, "head_dim": 8},
    "gemma3_text": {**WIDE, "head_dim": 8},
    "glm": {**WIDE, "head_dim": 8, "pad_token_id": 0},
    "phi": {**WIDE, "num_key_value_heads": 4},
    "gpt2": OLD,
    "gpt_neo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "attention_types": [[["global"], 2]],
    },
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 64, "state_size": 4},
    "mixtral": {**WIDE, "num_local_experts": 4},
    "qwen3_moe": {**WIDE, "num_experts": 4, "moe_intermediate_size": 16, "head_dim": 8},
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_has_saved_is_taken_whatever_the_family(tmp_path, family):
    config = AutoConfig.for_model(family, **FAMILIES[family])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    check_weights(tmp_path)
    load_causal_lm(tmp_path, dtype=torch.float32)


def test_masks_and_frequencies_that_older_versions_stored_are_no_weights(tmp_path):
    config = AutoConfig.for_model("gpt_neo", **FAMILIES["gpt_neo"])
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "new")
    mask = {
        "transformer.h.0.attn.attention.bias": torch.ones(1, 1, 8, 8),
        "transformer.h.0.attn.attention.masked_bias": torch.ones(1),
    }
    old = changed(tmp_path / "new", tmp_path / "old", lambda weights: {**weights, **mask})
    check_weights(old)
    load_causal_lm(old, dtype=torch.float32)


# What is copied into a model in memory


@pytest.mark.parametrize("shape", [(1,), (64, 1)])
def test_a_checkpoint_whose_weight_would_broadcast_is_refused(trials, tmp_path, shape):
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(trials.trained("full")[0], checkpoint)
    file = checkpoint / "weights" / "model.safetensors"
    save_file({**load_file(file), LAYER: torch.zeros(shape)}, file)
    message = rf"1 have another shape: .*up_proj\.weight is \[{', '.join(map(str, shape))}\] and must be \[64, 32\]"
    with pytest.raises(ValueError, match=message):
        load_trained(checkpoint)
    with pytest.raises(ValueError, match=message):
        load_weights(trials.session.warm.acquire(BaseVariant("fp32"), FullMethod(), seed=0), checkpoint)


def test_an_adapter_of_another_shape_is_refused(trials, tiny_model):
    model = attach_lora(load_base_model(ModelSpec(path=str(tiny_model))), LoraMethod(rank=4))
    file = trials.trained("lora")[0] / "adapter" / "adapter_model.safetensors"
    name = f"base_model.model.{LAYER.removesuffix('.weight')}.lora_A.weight"
    tensors = {**load_file(file), name: torch.zeros(4, 1)}
    with pytest.raises(ValueError, match=r"up_proj\.lora_A\.weight is \[4, 1\] and must be \[4, 32\]"):
        load_adapter_state(model, tensors)


def test_an_adapter_of_a_wider_model_is_refused_with_the_first_module(trials, tmp_path):
    config = AutoConfig.for_model("llama", **{**WIDE, "hidden_size": 64})
    wider = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ValueError, match=r"an adapter of another model: size mismatch for .*lora_A"):
        load_adapter(wider, trials.trained("lora")[0] / "adapter")
