"""What is adapted or trained of a model: every name is found before anything starts, and nothing that text cannot reach."""

import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from transformers import AutoConfig, AutoModelForCausalLM

from components.experiment.base_precisions import BaseVariant
from components.experiment.experiment_errors import ExperimentError
from components.experiment.spec import (
    BudgetSpec,
    DataSpec,
    ExperimentSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    SearchSpec,
)
from components.models.adapters import attach_lora
from components.models.base.load_base import check_base, config_of, load_base_model
from components.models.base.reusable import ReusableBase
from components.models.modality_towers import unreached_parameters, unreached_towers
from components.models.trainable_summary import describe_branch_training
from components.training.workers import TorchWorkers
from tests.support.sessions import FULL, LORA, curve, prepared_toy, reports, session, weights
from tests.support.toy import letter_tokenizer
from tests.support.toy_chatglm import formula_directory

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": len(letter_tokenizer()), "max_position_embeddings": 512, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model",
}  # fmt: skip
FAMILIES = {
    "gemma3": {
        "text_config": {**SIZES, "model_type": "gemma3_text"}, "vision_config": VISION, "mm_tokens_per_image": 4,
    },
    "got_ocr2": {
        "text_config": {**SIZES, "model_type": "qwen2"},
        "vision_config": {
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 16,
            "output_channels": 16, "mlp_dim": 48, "global_attn_indexes": [1], "window_size": 2,
        },
    },
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 1},
    "qwen3_moe": {**SIZES, "num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 1},
    "deepseek_v2": {
        **SIZES, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8,
        "n_routed_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1,
        "first_k_dense_replace": 1,
        "num_key_value_heads": 4,
    },
    "gpt_oss": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 1},
    "llama4_text": {**SIZES, "num_local_experts": 4, "intermediate_size_mlp": 48, "no_rope_layers": [1, 0]},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "vocab_size": SIZES["vocab_size"]},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": SIZES["vocab_size"]},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": SIZES["vocab_size"]},
}  # fmt: skip
TOWERS = ["model.vision_tower", "model.multi_modal_projector"]


def config(family):
    return AutoConfig.for_model(family, **FAMILIES[family])


def model(family):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(family)).eval()


def experiment(**branches):
    return ExperimentSpec(
        name="toy",
        model=ModelSpec(path="model"),
        data=DataSpec(train="data.jsonl"),
        search=SearchSpec(space={name: {"method": method} for name, method in branches.items()}),
    )


# Names


def test_one_misspelt_name_among_several_is_refused_with_the_nearest(tiny_model):
    method = {"kind": "lora", "target_modules": ["q_proj", "v_prj"]}
    with pytest.raises(ExperimentError, match=r"search\.space\.lora: .*v_prj is no module here \(did you mean v_proj"):
        describe_branch_training(experiment(lora=method), config_of(tiny_model))


def test_all_misses_of_all_branches_and_choices_are_said_together(tiny_model):
    choices = [["q_proj"], ["q_proj", "v_prj"], ["k_proj", "gate"]]
    branches = {
        "lora": {"kind": "lora", "target_modules": {"choice": choices}, "rank": {"choice": [2, 4]}},
        "qlora": {"kind": "lora", "quantize": "nf4", "target_modules": ["embed_token"]},
        "full": {"kind": "full"},
    }
    with pytest.raises(ExperimentError) as refused:
        describe_branch_training(experiment(**branches), config_of(tiny_model))
    first, second, third = refused.value.problems
    assert "v_prj is no module here" in first.text
    assert "gate is no module here (did you mean gate_proj?)" in second.text
    assert (third.location, "embed_token is no module here (did you mean embed_tokens" in third.text) == (
        "search.space.qlora",
        True,
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (".*q_proj", r"names are compared from their ends, and are no patterns"),
        ("layers.0.q_proj", r"did you mean model\.layers\.0\.self_attn\.q_proj"),
        ("mlp", r"mlp is a LlamaMLP, which has no adapters; name what is inside: down_proj, gate_proj, up_proj"),
        ("proj", r"proj is no module here"),
        ("all-linear", r"all-linear is no module here"),
        ("Q_PROJ", r"Q_PROJ is no module here"),
        ("input_layernorm", r"input_layernorm is a LlamaRMSNorm, which has no adapters"),
    ],
)
def test_a_name_beside_a_right_one_that_peft_would_drop_is_refused(tiny_model, name, message):
    method = LoraMethod(target_modules=("q_proj", name))
    with pytest.raises(ValueError, match=message):
        attach_lora(load_base_model(ModelSpec(path=str(tiny_model))), method)


@pytest.mark.parametrize(
    ("family", "names", "taken"),
    [
        ("gpt2", ["c_attn", "wte"], "adapts 2 x c_attn, 1 x wte"),
        ("gpt2", "all-linear", "adapts 2 x c_attn, 2 x c_fc, 4 x c_proj"),
        ("gpt2", ["h.1.attn.c_attn", "lm_head"], "adapts 1 x c_attn, 1 x lm_head"),
        ("gpt2", ["transformer.h.0.mlp.c_fc"], "adapts 1 x c_fc"),
        ("mixtral", ["q_proj", "w1", "w2", "w3"], "adapts 2 x experts.down_proj, 2 x experts.gate_up_proj, 2 x q_proj"),
        (
            "gpt_oss",
            "all-linear",
            "adapts 2 x experts.down_proj, 2 x experts.gate_up_proj, 2 x k_proj, 2 x o_proj, 2 x q_proj, 2 x v_proj",
        ),
        (
            "deepseek_v2",
            "all-linear",
            "adapts 2 x down_proj.weight, 1 x experts.down_proj, 1 x experts.gate_up_proj, 1 x gate.weight, 2 x"
            " gate_proj.weight, 2 x kv_a_proj_with_mqa, 2 x kv_b_proj, 2 x o_proj, 2 x q_a_proj, 2 x q_b_proj, 2 x"
            " up_proj.weight",
        ),
        (
            "llama4_text",
            "all-linear",
            "adapts 2 x down_proj, 2 x experts.down_proj, 2 x experts.gate_up_proj, 2 x gate_proj, 2 x k_proj, 2 x o_proj,"
            " 2 x q_proj, 2 x up_proj, 2 x v_proj, without router (a Llama4Router is no linear layer)",
        ),
        (
            "bloom",
            "all-linear",
            "adapts 2 x dense, 2 x dense_4h_to_h, 2 x dense_h_to_4h, 2 x query_key_value",
        ),
        (
            "mamba",
            "all-linear",
            "adapts 2 x in_proj, without dt_proj, out_proj, x_proj (a MambaMixer reads their weights itself)",
        ),
    ],
)
def test_what_is_taken_is_counted(family, names, taken):
    found = describe_branch_training(experiment(lora={"kind": "lora", "target_modules": names}), config(family))
    assert found == {"lora": taken}


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        (("query_key_value", "dense"), "adapts 2 x k_proj, 2 x o_proj, 2 x q_proj, 2 x v_proj"),
        (("output_layer", "word_embeddings"), "adapts 1 x embed_tokens, 1 x lm_head"),
        (("mlp.dense_4h_to_h",), "adapts 2 x down_proj"),
        (("transformer.encoder.layers.1.self_attention.query_key_value",), "adapts 1 x k_proj, 1 x q_proj, 1 x v_proj"),
    ],
)
def test_chatglm3s_own_names_are_found(tmp_path, names, taken):
    found = describe_branch_training(
        experiment(lora={"kind": "lora", "target_modules": list(names)}), config_of(formula_directory(tmp_path))
    )
    assert found == {"lora": taken}


def test_one_misspelt_name_of_chatglm3s_is_refused_as_it_was_written(tmp_path):
    method = {"kind": "lora", "target_modules": ["query_key_values", "dense"]}
    with pytest.raises(ExperimentError, match="query_key_values is no module here"):
        describe_branch_training(experiment(lora=method), config_of(formula_directory(tmp_path)))


# What peft's classes cannot do


@pytest.mark.parametrize("setting", [{"dropout": 0.1}, {"dora": True}, {"dropout": {"choice": [0.0, 0.1]}}])
def test_experts_with_dropout_or_dora_are_refused_before_anything_starts(setting):
    with pytest.raises(ExperimentError, match=r"experts are adapted as whole parameters, .* neither dropout nor DoRA"):
        describe_branch_training(experiment(lora={"kind": "lora", **setting}), config("qwen3_moe"))
    attention = {"kind": "lora", "target_modules": ["q_proj", "v_proj"], **setting}
    assert describe_branch_training(experiment(lora=attention), config("qwen3_moe")) == {
        "lora": "adapts 2 x q_proj, 2 x v_proj"
    }


def test_a_layer_whose_weight_its_class_reads_itself_is_refused_by_name():
    method = {"kind": "lora", "target_modules": ["in_proj", "dt_proj"]}
    with pytest.raises(
        ExperimentError, match="dt_proj: a MambaMixer reads its weight itself, so an adapter would learn"
    ):
        describe_branch_training(experiment(lora=method), config("mamba"))


def test_dense_layers_beside_experts_stay_without_adapters_on_a_quantized_base():
    found = describe_branch_training(experiment(lora={"kind": "lora", "quantize": "nf4"}), config("deepseek_v2"))
    assert found["lora"] == (
        "adapts 1 x experts.down_proj, 1 x experts.gate_up_proj, 1 x gate.weight, 2 x kv_a_proj_with_mqa, 2 x kv_b_proj,"
        " 2 x o_proj, 2 x q_a_proj, 2 x q_b_proj, without down_proj, gate_proj, up_proj (beside experts they are adapted as"
        " whole parameters, and these are quantized)"
    )


def test_half_of_a_fused_expert_is_refused():
    method = {"kind": "lora", "target_modules": ["w1", "w2"]}
    with pytest.raises(ExperimentError, match="w1 without also targeting w3"):
        describe_branch_training(experiment(lora=method), config("mixtral"))


def test_dora_on_an_int8_base_is_refused_and_on_nf4_it_learns(tiny_model):
    with pytest.raises(
        ExperimentError, match=r"method\.dora: true cannot be computed on a base of method\.quantize: int8"
    ):
        describe_branch_training(
            experiment(lora={"kind": "lora", "dora": True, "quantize": "int8"}), config_of(tiny_model)
        )
    method = LoraMethod(rank=2, dora=True, quantize="nf4")
    adapted = attach_lora(load_base_model(ModelSpec(path=str(tiny_model)), quantize="nf4"), method)
    tokens = torch.arange(12)[None]
    adapted(input_ids=tokens, labels=tokens).loss.backward()
    assert all(weight.grad is not None for name, weight in adapted.named_parameters() if "lora_B" in name)


# Towers


@pytest.mark.parametrize("family", ["gemma3", "got_ocr2"])
def test_what_no_text_reaches_is_neither_trained_nor_adapted(family):
    assert unreached_towers(model(family)) == TOWERS
    warm, kind = ReusableBase(lambda kind: model(family)), BaseVariant("fp32")
    full = warm.acquire(kind, FullMethod(), seed=0)
    frozen = {name for name, weight in full.named_parameters() if not weight.requires_grad}
    assert frozen == {name for name, _ in full.named_parameters() if name.startswith(tuple(TOWERS))}
    lora = warm.acquire(kind, LoraMethod(rank=2), seed=0)
    adapted = [name for name, _ in lora.named_parameters() if "lora_" in name]
    assert len(adapted) == 2 * 7 * 2
    assert not [name for name in adapted if "vision" in name or "multi_modal" in name]
    named = warm.acquire(kind, LoraMethod(rank=2, target_modules=("q_proj",)), seed=0)
    assert len([name for name, _ in named.named_parameters() if "lora_A" in name]) == 2


def test_the_weights_of_a_family_without_sdpa_are_compared(tmp_path):
    model("got_ocr2").save_pretrained(tmp_path)
    check_base(ModelSpec(path=str(tmp_path), attention="sdpa"))


def test_a_name_that_only_a_tower_has_is_refused():
    with pytest.raises(ExperimentError, match=r"fc1 is only where no text comes \(model\.vision_tower"):
        describe_branch_training(
            experiment(lora={"kind": "lora", "target_modules": ["q_proj", "fc1"]}), config("gemma3")
        )


def test_towers_are_said_and_models_without_them_have_none():
    full, lora = {"kind": "full"}, {"kind": "lora", "target_modules": ["q_proj"]}
    aside = " (nothing of model.vision_tower, model.multi_modal_projector, which no text reaches)"
    assert describe_branch_training(experiment(full=full, lora=lora), config("gemma3")) == {
        "full": f"trains every weight{aside}",
        "lora": f"adapts 2 x q_proj{aside}",
    }
    for family in ("mixtral", "qwen3_moe", "gpt2"):
        assert unreached_parameters(config(family)) == frozenset()


TOGETHER = [
    ("gemma3", "ddp", "full"),
    ("gemma3", "ddp", "lora"),
    ("gemma3", "fsdp", "full"),
    ("mixtral", "ddp", "full"),
    ("qwen3_moe", "ddp", "full"),
]
ONCE = BudgetSpec(epochs=1.0, evaluations=1)
SPECS = {
    "full": FULL.model_copy(update={"budget": ONCE}),
    "lora": LORA.model_copy(update={"budget": ONCE, "method": LoraMethod(rank=4)}),
}


def of_family(toy, family):
    return (toy[0].with_name(family), *toy[1:])


def trained_together(rank, toy, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    curves = {}
    for case in TOGETHER:
        family, parallel, method = case
        workers = TorchWorkers(torch.device("cpu"), parallel=parallel)
        of = session(of_family(toy, family), folder / "-".join(case), workers)
        curves["-".join(case)] = curve(reports(of, SPECS[method], "trial"))
    (folder / f"worker_{rank}.json").write_text(json.dumps(curves))
    dist.destroy_process_group()


def test_two_workers_train_models_with_towers_and_with_experts_that_no_token_chose(tmp_path):
    toy = prepared_toy(tmp_path)
    for family in {case[0] for case in TOGETHER}:
        directory = of_family(toy, family)[0]
        model(family).save_pretrained(directory)
        letter_tokenizer().save_pretrained(directory)
    multiprocessing.spawn(trained_together, args=(toy, tmp_path), nprocs=2)
    first, second = (json.loads((tmp_path / f"worker_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for family, parallel, method in TOGETHER:
        one = session(of_family(toy, family), tmp_path / f"one-{family}-{parallel}-{method}")
        alone = curve(reports(one, SPECS[method], "trial"))
        assert first[f"{family}-{parallel}-{method}"] == pytest.approx(alone, abs=1e-3)
        if method == "full":
            before = dict(model(family).named_parameters())
            changed = [name for name, weight in weights(one).items() if not torch.equal(weight, before[name])]
            assert len(changed) > len(before) / 4
            assert not [name for name in changed if name.startswith(tuple(TOWERS))]
