"""What a base's weights are kept in: decided trial by trial, and the same when what was trained is loaded again."""

import gc
import json
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import LlamaConfig, LlamaForCausalLM

from components.data.prepare import PreparedDataset
from components.experiment.base_precisions import BaseVariant, base_variants, dtype_warnings
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import (
    FullMethod,
    LoraMethod,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    TrialSpec,
    WorkersSpec,
)
from components.models.adapters import attach_lora
from components.models.load_trained import load_base_of, load_trained
from components.models.precision import computing
from components.planning.remedies import smaller_cases
from components.planning.trial_estimate import PlanCase
from components.storage.open_folder import folder_at
from components.training import trial_runner as session_module
from components.training.evaluate import score
from components.training.trial_runner import load_base_model
from components.training.workers import TorchWorkers
from tests.support.sessions import FULL, MAX_TOKENS, curve, reports, session

BF16 = FULL.model_copy(update={"precision": "bf16"})
LORA = BF16.model_copy(update={"method": LoraMethod(rank=4, alpha=8.0)})
QLORA = LoraMethod(quantize="nf4")


def dtypes(model):
    """(of the base, of the adapters)."""
    named = dict(model.named_parameters())
    adapters = {str(weight.dtype) for name, weight in named.items() if "lora_" in name}
    return {str(weight.dtype) for name, weight in named.items() if "lora_" not in name}, adapters


@pytest.mark.parametrize(
    ("of_model", "trial", "expected"),
    [
        ("auto", {"method": FullMethod(), "precision": "auto"}, "fp32"),
        ("auto", {"method": FullMethod()}, "fp32"),
        ("auto", {"method": FullMethod(), "precision": "fp32"}, "fp32"),
        ("auto", {"method": LoraMethod()}, "bf16"),
        ("auto", {"method": LoraMethod(), "precision": "fp32"}, "fp32"),
        ("auto", {"method": QLORA}, "bf16"),
        ("auto", {"method": QLORA, "precision": "fp32"}, "fp32"),
        ("auto", {"method": FullMethod(), "dtype": "bf16"}, "bf16"),
        ("auto", {"method": LoraMethod(), "dtype": "fp32"}, "fp32"),
        ("fp32", {"method": LoraMethod()}, "fp32"),
        ("bf16", {"method": FullMethod()}, "bf16"),
        ("fp32", {"method": LoraMethod(), "dtype": "auto"}, "bf16"),
        ("bf16", {"method": FullMethod(), "dtype": "auto"}, "fp32"),
    ],
)
def test_a_trials_dtype_is_its_own_else_the_models_else_by_method_and_precision(of_model, trial, expected):
    assert ModelSpec(path="a", dtype=of_model).dtype_of(TrialSpec(**{"precision": "bf16", **trial})) == expected


EXPERIMENT = """
name: toy
model: {path: a, %s}
data: {train: b}
trial: {budget: {epochs: 1}, precision: bf16}
search:
  trials: 2
  space:
    lora: {method: {kind: lora}, %s}
    full: {method: {kind: full}, %s}
resources: {full: {workers: 2}}
"""


@pytest.fixture
def written(tmp_path):
    def loaded(model="", lora="", full=""):
        path = tmp_path / "toy.yaml"
        path.write_text((EXPERIMENT % (model, lora, full)).replace(", }", "}"))
        return load_experiment(path)

    return loaded


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        (
            {"model": "dtype: bf16", "lora": "precision: fp32"},
            "search.space.lora: precision=fp32 with dtype=bf16: what is computed with bf16 weights is computed in bf16; set"
            " precision: bf16, or dtype: fp32",
        ),
        (
            {"full": "dtype: {choice: [auto, bf16]}, precision: {choice: [fp32, bf16]}"},
            "search.space.full: precision=fp32 with dtype=bf16: what is computed with bf16 weights is computed in bf16; set"
            " precision: bf16, or dtype: fp32",
        ),
        (
            {"model": "attention: flash_attention_2", "lora": "precision: fp32"},
            "search.space.lora: precision=fp32 with model.attention=flash_attention_2: it computes in 16 bits only; set"
            " precision: bf16, or model.attention: sdpa",
        ),
        (
            {"model": "attention: flash_attention_2"},
            "search.space.full: model.attention=flash_attention_2 computes on GPUs only, and resources.full has none; set"
            " resources.full.gpus_per_worker, or model.attention: sdpa",
        ),
        ({"model": "dtype: fp16"}, "model.dtype: "),
    ],
)
def test_what_cannot_be_computed_is_refused_before_anything_starts(written, parts, problem):
    with pytest.raises(ExperimentError) as caught:
        written(**parts)
    assert any(str(found).startswith(problem) for found in caught.value.problems), caught.value


def test_full_fine_tuning_of_bf16_weights_is_warned_of_by_branch_and_with_the_reason(written):
    assert dtype_warnings(written()) == []
    (warning,) = dtype_warnings(written(model="dtype: bf16"))
    assert warning.startswith("search.space.full: full fine-tuning with dtype=bf16 rounds most updates away")
    (varied,) = dtype_warnings(written(full="dtype: {choice: [auto, bf16]}"))
    assert varied == warning


def test_slots_know_which_bases_their_trials_want(written):
    experiment = written()
    lora, full = experiment.resources.lora, experiment.resources.full
    assert base_variants(experiment, lora) == {BaseVariant("bf16")}
    assert base_variants(experiment, full) == {BaseVariant("fp32")}
    varied = written(lora="precision: {choice: [fp32, bf16]}")
    assert base_variants(varied, lora) == {BaseVariant("bf16"), BaseVariant("fp32")}


@pytest.mark.parametrize("method", [LORA.method, LORA.method.model_copy(update={"dora": True})], ids=["lora", "dora"])
def test_a_lora_trial_has_and_reloads_a_bf16_base_and_float32_adapters(toy, tmp_path, method):
    of = session(toy, tmp_path)
    report = reports(of, LORA.model_copy(update={"method": method}))[-1]
    assert dtypes(of.running.model) == ({"torch.bfloat16"}, {"torch.float32"})
    assert json.loads((Path(report.checkpoint) / "base.json").read_text())["model"]["dtype"] == "bf16"
    loaded = load_trained(Path(report.checkpoint))
    assert dtypes(loaded.model) == ({"torch.bfloat16"}, {"torch.float32"})
    base = load_base_of(Path(report.checkpoint))
    assert (dtypes(base.model)[0], base.precision) == ({"torch.bfloat16"}, "bf16")
    assert loss_of(loaded, toy) == pytest.approx(report.eval_loss, abs=1e-6)


def test_a_full_trial_has_and_reloads_float32_weights(toy, tmp_path):
    of = session(toy, tmp_path)
    reports(of, LORA, "lora")
    report = reports(of, BF16, "full")[-1]
    assert dtypes(of.running.model)[0] == {"torch.float32"}
    assert json.loads((Path(report.checkpoint) / "base.json").read_text())["model"]["dtype"] == "fp32"
    loaded = load_trained(Path(report.checkpoint))
    assert dtypes(loaded.model)[0] == {"torch.float32"}
    assert loss_of(loaded, toy) == pytest.approx(report.eval_loss, abs=1e-6)


def loss_of(loaded, toy):
    store = PreparedDataset.open(toy[1]).eval
    losses = score(loaded, store, max_tokens=MAX_TOKENS, rows_per_batch=4)
    return sum(loss.loss_sum for loss in losses) / sum(loss.num_targets for loss in losses)


def test_what_an_earlier_search_left_is_loaded_with_the_dtype_it_names(toy, tmp_path):
    checkpoint = Path(reports(session(toy, tmp_path, dtype="fp32"), LORA)[-1].checkpoint)
    spec = json.loads((checkpoint / "spec.json").read_text())
    assert spec.pop("dtype") is None
    (checkpoint / "spec.json").write_text(json.dumps(spec))  # as one was written before trials had a dtype
    assert dtypes(load_trained(checkpoint).model)[0] == {"torch.float32"}


def test_a_slot_holds_one_base_at_a_time_and_every_trial_is_as_if_it_had_its_own(toy, tmp_path, monkeypatch):
    alive, loads = weakref.WeakSet(), []

    def counted(model, **options):
        gc.collect()
        loads.append((model.dtype, options["quantize"], len(alive)))
        base = load_base_model(model, **options)
        alive.add(base)
        return base

    monkeypatch.setattr(session_module, "load_base_model", counted)
    shared = session(toy, tmp_path)
    packed = LORA.model_copy(update={"method": LoraMethod(rank=4, alpha=8.0, quantize="nf4")})
    in_turn = [curve(reports(shared, spec)) for spec in (LORA, BF16, BF16, LORA, packed, LORA)]
    assert loads == [
        ("bf16", None, 0),
        ("fp32", None, 0),
        ("bf16", None, 0),
        ("bf16", "nf4", 0),
        ("bf16", None, 0),
    ]
    monkeypatch.undo()
    lora, full = (curve(reports(session(toy, tmp_path), spec)) for spec in (LORA, BF16))
    assert (in_turn[:4], in_turn[5]) == ([lora, full, full, lora], lora)


def test_a_lora_trial_finds_no_copy_of_the_weights_that_a_full_one_needed(toy, tmp_path):
    of = session(toy, tmp_path, dtype="fp32")
    of.start("full", BF16)
    assert of.warm._clean is not None
    of.start("lora", LORA)
    assert of.warm._clean is None


@pytest.mark.parametrize("spec", [BF16, LORA], ids=["full", "lora"])
def test_a_warm_clone_may_keep_its_weights_in_another_dtype(toy, tmp_path, spec):
    of = session(toy, tmp_path)
    parent = reports(of, spec.model_copy(update={"dtype": "fp32"}), "parent")[-1]
    still = {"optimizer": OptimizerSpec(learning_rate=1e-12), "dtype": "bf16"}
    of.start("child", spec.model_copy(update=still), warm_from=folder_at(parent.checkpoint))
    assert dtypes(of.running.model)[0] == {"torch.bfloat16"}
    assert of.advance().eval_loss == pytest.approx(parent.eval_loss, abs=0.02)


def test_bf16_weights_of_a_full_fine_tune_stay_where_they_are(toy, tmp_path):
    """Why auto never keeps them so: at a usual learning rate an update is less than half of what bf16 can tell apart."""
    slow = {
        "optimizer": OptimizerSpec(learning_rate=1e-5),
        "schedule": ScheduleSpec(name="constant", warmup_fraction=0),
    }
    moved = {}
    for dtype in ("fp32", "bf16"):
        of = session(toy, tmp_path / dtype)
        of.start("trial", BF16.model_copy(update={**slow, "dtype": dtype}))
        layer = of.running.model.model.layers[0].mlp.up_proj.weight
        before = layer.detach().clone()
        of.advance()
        moved[dtype] = float((layer != before).float().mean())
    assert moved["fp32"] > 0.99
    assert moved["bf16"] < 0.3


def test_shards_are_float32_unless_a_trial_names_another_dtype(toy, tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        of = session(toy, tmp_path, TorchWorkers(torch.device("cpu"), parallel="fsdp"))
        of.start("first", BF16)
        assert dtypes(of.running.model)[0] == {"torch.float32"}
        of.start("second", BF16.model_copy(update={"dtype": "bf16"}))
        assert dtypes(of.running.model)[0] == {"torch.bfloat16"}
        of.start("third", BF16)
        assert dtypes(of.running.model)[0] == {"torch.float32"}
        assert of.advance().eval_loss < 5
    finally:
        dist.destroy_process_group()


def test_a_plan_that_finds_no_room_for_lora_names_the_way_to_smaller_weights():
    def ways(trial, model="auto"):
        workers = WorkersSpec(gpus_per_worker=1)
        case = PlanCase(
            model=ModelSpec(path="a", dtype=model), spec=TrialSpec(**{"precision": "bf16", **trial}), workers=workers
        )
        return [name for name, _ in smaller_cases(case)]

    few = {"gradient_checkpointing": True, "batch": {"rows_per_step": 1, "rows_per_micro_batch": 1}}
    quantized = ["method.quantize: int8", "method.quantize: nf4"]
    assert ways({**few, "method": LoraMethod()}) == quantized
    assert ways({**few, "method": LoraMethod(), "precision": "fp32"}) == ["precision: bf16", *quantized]
    assert ways({**few, "method": LoraMethod()}, "fp32") == ["dtype: bf16", *quantized]
    assert ways({**few, "method": LoraMethod(), "precision": "fp32"}, "fp32") == [
        "precision: bf16 and dtype: bf16",
        *quantized,
    ]


def test_adapters_without_peft_s_float32_copies_of_their_inputs_give_the_same_bits():
    found = []
    for copies in (False, True):
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
        )
        adapted = attach_lora(LlamaForCausalLM(config).bfloat16(), LoraMethod(rank=4)).train()
        for module in adapted.modules():
            if isinstance(module, BaseTunerLayer):
                assert not module.cast_input_dtype_enabled
                module.cast_input_dtype_enabled = copies
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        tokens = torch.arange(3, 35)[None]
        with computing("bf16", torch.device("cpu")):
            loss = adapted(input_ids=tokens, labels=tokens).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in adapted.parameters() if p.grad is not None)])
    assert len(found[0]) == 1 + 2 * 7 * 2
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("method", [LoraMethod(dropout=0.1), LoraMethod(dora=True)], ids=["dropout", "dora"])
def test_adapters_that_compute_with_their_input_keep_its_float32_copy(method):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    adapted = attach_lora(LlamaForCausalLM(config), method)
    layers = [module for module in adapted.modules() if isinstance(module, BaseTunerLayer)]
    assert layers
    assert all(layer.cast_input_dtype_enabled for layer in layers)
