"""Norms and gated layers in fewer passes: transformers' results, and in all else its layers."""

import copy

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    Glm4Config,
    Glm4ForCausalLM,
    GlmConfig,
    GlmForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from components.models.lean_layers import make_layers_lean
from components.models.precision import computing

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),  # a norm within the attention, too
    "glm": (GlmForCausalLM, GlmConfig),  # ChatGLM3's: gate and up are made side by side
    "glm4": (Glm4ForCausalLM, Glm4Config),  # norms behind the layers
}
PRECISIONS = [(torch.float32, "fp32"), (torch.float32, "bf16"), (torch.bfloat16, "bf16")]


def pair_of(model_class, config_class, dtype=torch.float32, **settings):
    """Equal models: transformers' own, and the lean one. Norms do not begin with weights of 1."""
    torch.manual_seed(0)
    plain = model_class(config_class(**SIZES, **settings)).to(dtype)
    with torch.no_grad():
        for name, weight in plain.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    lean = copy.deepcopy(plain)
    make_layers_lean(lean)
    return plain, lean


def made_lean(model):
    return [name for name, module in model.named_modules() if type(module).__mro__[1].__name__.startswith("_Lean")]


def passed(model, precision="fp32"):
    """Logits and gradients of a pass."""
    token_ids = torch.arange(24).view(2, 12)
    with computing(precision, torch.device("cpu")):
        output = model(input_ids=token_ids, labels=token_ids)
    output.loss.backward()
    return output.logits, {name: weight.grad.float() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("dtype", "precision"), PRECISIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_are_the_same_bits_and_gradients_as_near_as_sums_in_another_order(family, dtype, precision):
    plain, lean = pair_of(*FAMILIES[family], dtype)
    assert len(made_lean(lean)) >= 7  # two norms and a gated layer in each of two layers, and the last norm
    (logits, slopes), (lean_logits, lean_slopes) = passed(plain, precision), passed(lean, precision)
    assert torch.equal(lean_logits, logits)
    near = 1e-5 if precision == "fp32" else 0.02
    for name, slope in slopes.items():
        assert (lean_slopes[name] - slope).norm() <= near * slope.norm(), name


def test_weights_keep_their_names_and_layers_the_names_of_their_classes():
    plain, lean = pair_of(*FAMILIES["llama"])
    assert list(lean.state_dict()) == list(plain.state_dict())
    for module, other in zip(plain.modules(), lean.modules(), strict=True):
        assert isinstance(other, type(module))
        assert type(other).__name__ == type(module).__name__


def test_a_second_call_changes_nothing():
    _, lean = pair_of(*FAMILIES["glm"])
    before = [type(module) for module in lean.modules()]
    make_layers_lean(lean)
    assert [type(module) for module in lean.modules()] == before


def test_a_norm_that_computes_something_else_is_left_alone():
    _, lean = pair_of(GemmaForCausalLM, GemmaConfig)  # its norm multiplies by 1 + weight
    assert made_lean(lean) == []


def test_a_gated_layer_with_another_activation_is_left_alone():
    _, lean = pair_of(LlamaForCausalLM, LlamaConfig, hidden_act="gelu")
    assert not any("mlp" in name for name in made_lean(lean))


@pytest.mark.parametrize("family", ["llama", "glm"])
def test_less_is_kept_for_the_backward_pass(family):
    kept = []
    for model in pair_of(*FAMILIES[family], torch.bfloat16):
        model.requires_grad_(False).get_input_embeddings().weight.requires_grad_(True)
        storages = {}
        note = lambda tensor, into=storages: into.update({tensor.untyped_storage().data_ptr(): tensor}) or tensor  # noqa: E731
        with saved_tensors_hooks(note, lambda tensor: tensor):
            model.get_decoder()(input_ids=torch.arange(24).view(2, 12))
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept.append(sum(each.untyped_storage().nbytes() for at, each in storages.items() if at not in weights))
    plain, lean = kept
    assert lean < 0.7 * plain
