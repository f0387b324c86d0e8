"""What a search will need is known before it starts: memory as real trials take it, work, hours and money."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AttentionInterface, GraniteConfig, LlamaConfig, LlamaForCausalLM, MixtralConfig, OPTConfig

from components.conversations.chat_formats.rendered import Fork, RenderedConversation
from components.data.prepare import PREPARED_MANIFEST, PreparedDataset
from components.data.rows import rows_of
from components.data.token_store import Entry, digest_of, write_store
from components.experiment.experiment_errors import ExperimentError
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import (
    AshaSpec,
    BatchSpec,
    BudgetSpec,
    FullMethod,
    HyperbandSpec,
    LoraMethod,
    ModelSpec,
    NoSchedulerSpec,
    OptimizerSpec,
    TrialSpec,
    WorkersSpec,
)
from components.models.packed_attention import NAME, attend
from components.models.precision import fast_on_cpu
from components.planning.branch_plan import BranchPlan, NodeFit
from components.planning.calibrate import CalibrationRequest, calibrate_trial
from components.planning.dry_run import DryRun, MicroBatch, Peak, dry_run_step
from components.planning.experiment_plan import ExperimentPlan
from components.planning.instance_types import load_node_table
from components.planning.memory import WorkerGroup, memory_plan, verification_plan
from components.planning.trial_estimate import Estimate, PlanCase
from components.planning.verification_memory import check_verifiable
from components.planning.workload import Workload, trials_worth, workload
from components.storage.open_folder import folder_at
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl
from workflows import plan as program
from workflows.cli import Exit

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODEL = ModelSpec(path="a model of the test")
BATCH = MicroBatch(rows=2, tokens=128, targets=64)
# Linear layers of SMALL: q and o 64 x 64, k and v 64 x 32, gate, up and down 64 x 128, in two layers; norms and embeddings.
LINEAR = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
EMBEDDINGS, NORMS = 512 * 64, 5 * 64


def dry_run_of(config=None, *, batch=BATCH, model=MODEL, synced=False, **spec):
    return dry_run_step(
        config or LlamaConfig(**SMALL), model, TrialSpec(**{"precision": "bf16", **spec}), batch, synced=synced
    )


# The dry_run


def test_parameters_and_weights_are_those_of_the_configuration():
    full = dry_run_of(method=FullMethod())
    assert full.parameters == full.trained_parameters == LINEAR + 2 * EMBEDDINGS + NORMS
    frequencies = 2 * 16 // 2 * 4  # rotary, and a copy of them as they were made
    assert full.weight_bytes == 4 * full.parameters + frequencies
    assert full.root_parameters == 2 * EMBEDDINGS + 64
    assert full.layer_parameters == LINEAR // 2 + 2 * 64


def test_adapters_of_every_linear_layer_are_counted_and_the_base_is_not_trained():
    lora = dry_run_of(method=LoraMethod(rank=8))
    ends = 2 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128))
    assert lora.trained_parameters == 8 * ends
    assert lora.trained_bytes == 4 * 8 * ends  # float32, whatever the base is


def test_tied_embeddings_are_held_once():
    assert dry_run_of(LlamaConfig(**SMALL, tie_word_embeddings=True), method=FullMethod()).parameters == (
        LINEAR + EMBEDDINGS + NORMS
    )


def test_quantized_layers_are_held_in_4_bits_and_their_scales():
    packed = dry_run_of(method=LoraMethod(rank=8, quantize="nf4"))
    plain = dry_run_of(method=LoraMethod(rank=8))
    tables = 14 * 4 * (16 + 256 + 1)  # of each layer its own
    assert plain.weight_bytes - packed.weight_bytes == pytest.approx(LINEAR * (2 - 0.5 - 1 / 64) - tables, rel=1e-3)


def test_a_step_is_six_operations_a_weight_and_token_and_four_if_frozen():
    short = MicroBatch(rows=8, tokens=8, targets=64)
    wide = LlamaConfig(**{**SMALL, "hidden_size": 512, "intermediate_size": 2048})
    weights = (
        2 * (2 * 512 * 512 + 2 * 512 * 256 + 3 * 512 * 2048) + 512 * 512
    )  # the head's too, embeddings are looked up
    full = dry_run_of(wide, batch=short, method=FullMethod())
    assert full.training_flops / 64 == pytest.approx(6 * weights, rel=0.01)
    assert full.evaluation_flops / 64 == pytest.approx(2 * weights, rel=0.01)
    lora = dry_run_of(wide, batch=short, method=LoraMethod(rank=1))
    first = 2 * (512 * 512 + 2 * 512 * 256)  # nobody asks for the gradient of what the first q, k and v are given
    assert lora.training_flops / 64 == pytest.approx(4 * weights - first, rel=0.01)


def test_the_operations_of_attention_are_counted_whatever_computes_it():
    batch = MicroBatch(rows=1, tokens=512, targets=256)
    models = (MODEL.model_copy(update={"attention": name}) for name in ("sdpa", "eager"))
    fused, plain = (dry_run_of(batch=batch, model=model, method=FullMethod()) for model in models)
    assert fused.evaluation_flops == plain.evaluation_flops
    scores = 2 * 512 * 512 * SMALL["hidden_size"] * SMALL["num_hidden_layers"]
    assert fused.evaluation_flops > 2 * scores
    # It computes the scores again in the backward pass, instead of keeping them.
    assert fused.training_flops == plain.training_flops + scores


def test_a_full_trial_holds_its_gradients_and_its_weights_cast_to_bf16_once():
    batch = MicroBatch(rows=1, tokens=8, targets=8, accumulates=True)
    peak = dry_run_of(method=FullMethod(), batch=batch).training.bytes
    assert peak["gradients"] == 4 * (LINEAR + 2 * EMBEDDINGS + NORMS)
    assert peak["weight casts"] == 2 * (LINEAR + EMBEDDINGS)  # of the head, not of embeddings and norms


def test_a_proof_casts_one_weight_at_a_time_where_an_evaluation_keeps_all_casts():
    found = dry_run_of(method=FullMethod(), batch=MicroBatch(rows=1, tokens=8, targets=8))
    assert found.evaluation.bytes["weight casts"] >= 2 * LINEAR
    assert found.proof.bytes["weight casts"] <= 2 * EMBEDDINGS  # the head is the largest
    assert found.training.bytes["gradients"] > 0  # what was frozen for it is trained again


def test_gradients_that_go_into_buckets_are_not_held_twice():
    assert dry_run_of(method=FullMethod(), synced=True).training.bytes.get("gradients", 0) == 0


def test_checkpointing_keeps_a_layers_inputs_only():
    deep = LlamaConfig(**{**SMALL, "num_hidden_layers": 6})
    kept = dry_run_of(deep, method=LoraMethod()).training.bytes["activations"]
    recomputed = dry_run_of(deep, method=LoraMethod(), gradient_checkpointing=True).training.bytes["activations"]
    assert recomputed < kept / 2


def test_the_masks_of_trees_are_counted():
    paths = MicroBatch(rows=2, tokens=512, targets=4)
    config = OPTConfig(vocab_size=512, hidden_size=64, ffn_dim=128, num_hidden_layers=2, num_attention_heads=4)
    of_paths, of_trees = (
        dry_run_of(config, method=FullMethod(), batch=batch) for batch in (paths, replace(paths, trees=True))
    )  # without a tree this family needs no mask
    for kind in ("training", "evaluation"):
        assert getattr(of_trees, kind).total - getattr(of_paths, kind).total >= 2 * 512 * 512


def test_the_masks_of_conversations_that_share_a_row_are_counted_in_float32():
    alone = MicroBatch(rows=8, tokens=512, targets=4)
    shared, each = (
        dry_run_of(method=FullMethod(), batch=batch, precision="fp32").training.total
        for batch in (replace(alone, packed=True), alone)
    )
    # At the fullest moment there is less beside the masks.
    assert shared - each >= 512 * 512


def test_a_class_that_expects_a_mask_is_planned_with_masks(monkeypatch):
    """As some do where they read its shape."""

    def expecting_a_mask(*arguments, **others):
        raise TypeError("'NoneType' object is not subscriptable")

    packed = MicroBatch(rows=2, tokens=128, targets=4, packed=True, longest=64)
    apart = dry_run_of(method=FullMethod(), batch=packed).training.total
    AttentionInterface.register(NAME, expecting_a_mask)
    try:
        by_masks = dry_run_of(method=FullMethod(), batch=packed).training.total
    finally:
        AttentionInterface.register(NAME, attend)
    assert by_masks > apart


def test_logits_exist_for_scored_tokens_or_all_where_a_model_scales_them():
    whole = 2 * 128 * 512 * 2  # all positions, in bf16
    few = MicroBatch(rows=2, tokens=128, targets=4)
    assert dry_run_of(method=FullMethod(), batch=few).evaluation.bytes.get("logits", 0) < whole / 8
    scaled = GraniteConfig(**SMALL, logits_scaling=2.0)
    assert dry_run_of(scaled, method=FullMethod(), batch=few).evaluation.bytes["logits"] >= whole


def test_experts_are_rehearsed_though_nobody_knows_which_token_goes_where():
    experts = dry_run_of(MixtralConfig(**SMALL, num_local_experts=4), method=FullMethod())
    assert experts.parameters > dry_run_of(method=FullMethod()).parameters
    assert experts.training_flops > 0


# From the dry_run to a worker's memory

DRY_RUN = DryRun(
    parameters=1_000_000,
    trained_parameters=1_000_000,
    trained_tensors=10,
    trained_bytes=4_000_000,
    weight_bytes=4_000_000,
    layer_parameters=100_000,
    root_parameters=200_000,
    training=Peak(bytes={"weights": 4_000_000, "gradients": 500, "weight casts": 2_000_000, "activations": 300_000}),
    evaluation=Peak(bytes={"weights": 4_000_000, "weight casts": 2_000_000, "activations": 1_000}),
    proof=Peak(bytes={"weights": 4_000_000, "activations": 1_000}),
    training_flops=1,
    evaluation_flops=1,
)
FULL = TrialSpec(method=FullMethod(), precision="bf16")
WORK = Workload(
    batch=BATCH,
    evaluated=BATCH,
    largest_step=0,
    tokens_in_step=256,
    target_tokens=64,
    trained_tokens=256,
    evaluated_tokens=256,
)


def test_a_full_trial_keeps_a_clean_copy_and_two_numbers_a_weight_for_adamw():
    parts = memory_plan(DRY_RUN, FULL, WorkerGroup(on_gpu=False)).parts
    assert (parts["weights"], parts["clean copy"], parts["optimizer"]) == (4_000_000, 4_000_000, 8_000_040)
    assert parts["gradients"] == 500
    assert parts["allocator"] == 1_380_000  # 60 % of casts and activations


def test_the_8_bit_optimizer_takes_two_bytes_a_weight_and_a_little():
    spec = FULL.model_copy(update={"optimizer": OptimizerSpec(name="paged_adamw_8bit")})
    assert memory_plan(DRY_RUN, spec, WorkerGroup()).parts["optimizer"] == 2_031_250


def test_trials_that_share_a_slot_have_one_base_and_each_what_is_its_own():
    """The numbers of what one of them trains here are those of a full one, so the clean copy is left aside."""
    (alone, three) = (memory_plan(DRY_RUN, FULL, WorkerGroup(trials=trials)).parts for trials in (1, 3))
    assert three["weights"] == alone["weights"] + 2 * DRY_RUN.trained_bytes
    for part in ("gradients", "optimizer", "activations", "logits"):
        assert three[part] == 3 * alone[part]
    assert three["weight casts"] == alone["weight casts"]


def test_data_parallel_workers_hold_a_bucket_for_every_gradient():
    assert memory_plan(DRY_RUN, FULL, WorkerGroup(count=2)).parts["gradients"] == 4_000_500


def test_a_proof_holds_one_whole_model_however_few_of_it_a_sharded_worker_held():
    sharded = WorkerGroup(count=4, parallel="fsdp", cpu_offload=True)
    proof = verification_plan(DRY_RUN, sharded, base_bytes=4_000_000)
    assert proof.parts == {
        "weights": 4_000_000,
        "weight casts": 0,
        "activations": 1_000,
        "logits": 0,
        "allocator": 200_050,
        "process": 1_000_000_000,
    }
    assert proof.total > memory_plan(DRY_RUN, FULL, sharded).total
    assert proof.fullest_in == "proof"


def test_the_proof_of_a_quantized_winner_holds_the_base_model_as_it_is():
    proof = verification_plan(DRY_RUN, WorkerGroup(on_gpu=False), base_bytes=16_000_000)
    assert (proof.parts["weights"], proof.device) == (16_000_000, "cpu")


def estimate_of(group, workers, base_bytes=4_000_000):
    return Estimate(
        case=PlanCase(model=ModelSpec(path="toy"), spec=FULL, workers=workers),
        workload=WORK,
        dry_run=DRY_RUN,
        memory=memory_plan(DRY_RUN, FULL, group),
        proof=verification_plan(DRY_RUN, group, base_bytes=base_bytes),
    )


def test_gpus_that_hold_shards_but_not_the_model_are_too_small_for_verification():
    workers = WorkersSpec(workers=4, gpus_per_worker=1.0, parallel="fsdp", cpu_offload=True)
    estimate = estimate_of(WorkerGroup(count=4, parallel="fsdp", cpu_offload=True), workers)
    room = estimate.memory.total
    assert estimate.short(room) == estimate.proof.total - room > 0
    assert estimate.short(estimate.proof.total) == 0


def test_a_proof_on_cpus_has_the_memory_of_all_the_workers_for_itself():
    workers = WorkersSpec(workers=4, parallel="fsdp")
    estimate = estimate_of(WorkerGroup(count=4, on_gpu=False, parallel="fsdp"), workers, base_bytes=10**9)
    room = estimate.memory.total
    assert estimate.proof.total > room
    assert estimate.short(room) == 0
    assert estimate.short(room // 2) == estimate.proof.total - 4 * (room // 2)


def test_what_fits_nowhere_is_explained_by_the_larger_of_trial_and_verification():
    workers = WorkersSpec(workers=4, gpus_per_worker=1.0, parallel="fsdp", cpu_offload=True)
    estimate = estimate_of(WorkerGroup(count=4, parallel="fsdp", cpu_offload=True), workers, base_bytes=2 * 10**9)
    room = estimate.memory.total + 10**8
    fit = NodeFit(node="toy.4", room_bytes=room, short_bytes=estimate.short(room))
    branch = BranchPlan.model_construct(branch="full", memory=estimate.memory, proof=estimate.proof, fits=(fit,))
    assert ExperimentPlan.model_construct(branches=(branch,)).shortage() == (
        "full: to prove a winner takes weights 2.00 + activations 0.00 + allocator 0.10 + process 1.00 = 3.10 GB, and the"
        " most room is 1.10 GB, on toy.4"
    )


def test_sharded_workers_hold_their_share_and_the_layers_that_compute():
    parts = memory_plan(DRY_RUN, FULL, WorkerGroup(count=4, parallel="fsdp")).parts
    assert (parts["weights"], parts["clean copy"], parts["optimizer"]) == (1_000_000, 0, 2_000_010)
    assert parts["weight casts"] == 2 * (200_000 + 2 * 100_000)
    offloaded = memory_plan(DRY_RUN, FULL, WorkerGroup(count=4, parallel="fsdp", cpu_offload=True)).parts
    assert (offloaded["weights"], offloaded["optimizer"]) == (0, 0)


# The work


def dataset_of(folder, lengths, vocabulary=512, forks=()):
    """Random conversations of these lengths, each second token a target; the last one is held out."""
    generator = np.random.default_rng(0)
    entries = [
        Entry(
            source="random",
            rendered=RenderedConversation(
                token_ids=generator.integers(3, vocabulary, length).tolist(),
                target_weights=[float(position % 2) for position in range(length)],
                turn_ends=[length],
                forks=forks,
            ),
        )
        for length in lengths
    ]
    folder.mkdir(exist_ok=True)
    write_store(folder / "train.arrow", entries[:-1])
    write_store(folder / "eval.arrow", entries[-1:])
    digests = {f"{split}_digest": digest_of(folder / f"{split}.arrow") for split in ("train", "eval")}
    manifest = {"digest": folder.name, **digests, "counts": {}}
    (folder / PREPARED_MANIFEST).write_text(json.dumps(manifest))
    return PreparedDataset.open(folder_at(folder))


def test_the_largest_micro_batch_and_all_computed_tokens_are_known_from_the_data(tmp_path):
    dataset = dataset_of(tmp_path / "data", [16, 16, 16, 30, 24])
    spec = TrialSpec(
        batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=2, packing=False),
        budget=BudgetSpec(epochs=2.0, evaluations=3),
        precision="bf16",
    )
    work = workload(dataset.train, dataset.eval, spec, max_tokens=32, workers=1)
    # Longest first: rows of 30 and 16 together, padded to 32; then 16 and 16.
    assert work.batch == MicroBatch(rows=2, tokens=32, targets=15 + 8, accumulates=True, longest=30)
    assert work.evaluated == MicroBatch(rows=1, tokens=24, targets=12, longest=24)
    assert work.trained_tokens == 2 * (2 * 32 + 2 * 16)
    assert work.evaluated_tokens == 3 * 24
    shared = workload(dataset.train, dataset.eval, spec, max_tokens=32, workers=2)
    assert shared.batch == MicroBatch(rows=2, tokens=32, targets=15 + 8, accumulates=False, longest=30)


def test_the_work_on_trees_has_masks_and_that_on_their_separate_rows_has_none(tmp_path):
    dataset = dataset_of(tmp_path / "data", [16, 16], forks=(Fork(start=8, depth=4),))
    spec = TrialSpec(batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=2, packing=False), precision="bf16")
    stores = dataset.train, dataset.eval
    whole = workload(*stores, spec, max_tokens=32, workers=1)
    assert whole.batch == MicroBatch(rows=1, tokens=16, targets=8, trees=True, longest=16)
    assert whole.evaluated == MicroBatch(rows=1, tokens=16, targets=8, trees=True, longest=16)
    separate = workload(*(rows_of(store, separate=True) for store in stores), spec, max_tokens=32, workers=1)
    assert separate.batch == MicroBatch(rows=2, tokens=16, targets=8, longest=12)
    packed = spec.model_copy(update={"batch": BatchSpec(rows_per_step=4, rows_per_micro_batch=2, packing=True)})
    shared = workload(*(rows_of(store, separate=True) for store in stores), packed, max_tokens=32, workers=1)
    assert (shared.batch.packed, shared.evaluated.packed) == (True, False)


def test_a_scheduler_saves_what_lies_behind_its_rungs():
    assert trials_worth(NoSchedulerSpec(), 400, 8, ()) == (8.0, 8.0)
    # Eight to the first quarter, four to the half, two to the end.
    assert trials_worth(AshaSpec(reduction_factor=2), 400, 8, (100, 200)) == (8 / 4 + 4 / 4 + 2 / 2, 8.0)
    assert trials_worth(AshaSpec(), 1600, 16, (100, 400)) == (16 / 16 + 4 * 3 / 16 + 3 / 4, 16.0)
    # Of nine, Hyperband lets six begin at the first rung, two at the second, and one at none.
    worth = (6 / 16 + 2 * 3 / 16 + 3 / 4) + (2 / 4 + 3 / 4) + 1
    assert trials_worth(HyperbandSpec(), 1600, 9, (100, 400)) == (worth, 9.0)


def test_a_branch_with_a_bracket_of_its_own_keeps_a_whole_trial_at_least():
    # One of three passes the first quarter; in a shared bracket three branches leave a part each.
    assert trials_worth(AshaSpec(), 400, 3, (100,)) == (3 / 4 + 3 / 4, 3.0)
    assert trials_worth(AshaSpec(brackets="shared"), 400, 3, (100,)) == (3 / 4 + 3 / 4 * 3 / 4, 3.0)


# Against real trials

MEASURED = LlamaConfig(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
)


@pytest.mark.parametrize("method", [LoraMethod(rank=16), FullMethod()], ids=lambda method: method.kind)
def test_the_plan_is_within_15_percent_of_what_a_real_trial_takes(tmp_path, monkeypatch, method):
    """glibc is told to give back what is freed; what it wastes otherwise is the benchmark's affair."""
    torch.manual_seed(0)
    LlamaForCausalLM(MEASURED).save_pretrained(tmp_path / "model")
    dataset = dataset_of(tmp_path / "data", [512] * 5, vocabulary=8192)
    spec = TrialSpec(
        method=method,
        batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=4, packing=False),
        budget=BudgetSpec(epochs=1.0, evaluations=1),
        precision=fast_on_cpu(),  # what `auto` comes to here
    )
    model = ModelSpec(path=str(tmp_path / "model"))
    work = workload(dataset.train, dataset.eval, spec, max_tokens=512, workers=1)
    plan = memory_plan(
        dry_run_step(MEASURED, model, spec, work.batch, evaluated=work.evaluated), spec, WorkerGroup(on_gpu=False)
    )
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    measured = calibrate_trial(
        CalibrationRequest(
            model=model,
            spec=spec,
            prepared=dataset.directory,
            max_tokens=512,
            pad_token_id=0,
            largest_step=0,
            tokens_in_step=work.tokens_in_step,
            on_gpu=False,
        ),
        steps=2,
        evaluates=True,
    )
    assert plan.tensors == pytest.approx(measured.peak_bytes, rel=0.15)
    assert measured.tokens_per_second > 0


# The program

EXPERIMENT = """
name: toy
model: {path: %(model)s}
data: {train: %(data)s, eval_fraction: 0.15, max_tokens: 128}
trial: {budget: {epochs: 1, evaluations: 2}, batch: {rows_per_step: 4, rows_per_micro_batch: 4}, precision: bf16}
storage: {path: %(storage)s}
search:
  trials: 4
  scheduler: {name: asha, reduction_factor: 2}
  space:
    lora: {method: {kind: lora, rank: {choice: [2, 8]}}, optimizer: {learning_rate: {log_uniform: [1.0e-4, 1.0e-3]}}}
    full: {method: {kind: full}, optimizer: {learning_rate: {log_uniform: [1.0e-5, 1.0e-4]}}}
resources: {lora: {gpus_per_worker: %(gpus)s}, full: {gpus_per_worker: %(gpus)s}}
"""
NODE = "{gpu: Toy, gpus: 4, gpu_memory_gb: %s, bf16_tflops: 1, fp32_tflops: 1, dollars_per_hour: 8, spot_dollars_per_hour: 4}"


@pytest.fixture
def experiment(tmp_path):
    def written(gpus):
        tiny_model_directory(tmp_path / "model")
        write_messages_jsonl(tmp_path / "talks.jsonl", toy_conversations(25))
        path = tmp_path / "toy.yaml"
        names = {"model": tmp_path / "model", "data": tmp_path / "talks.jsonl", "storage": tmp_path / "runs"}
        path.write_text(EXPERIMENT % {**names, "gpus": gpus})
        return path

    return written


def planned(capsys, *arguments):
    status = program.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return status, json.loads(said.out.splitlines()[-1]), said.err


def nodes_file(folder, gigabytes):
    path = folder / "nodes.yaml"
    path.write_text(f"as_of: 2026-11-01\nutilization: 0.5\nnodes: {{toy.4: {NODE % gigabytes}}}")
    return path


def test_a_plan_needs_no_weights_and_tells_hours_and_money(capsys, tmp_path, experiment):
    path = experiment(gpus=1)
    (tmp_path / "model" / "model.safetensors").unlink()
    status, plan, people = planned(capsys, path, "--json", "--nodes", nodes_file(tmp_path, 24))
    assert status == Exit.DONE
    lora, full = plan["branches"]
    assert (lora["branch"], lora["corner"]["method.rank"], lora["trials"]) == ("lora", 8, 2)
    assert full["trained_parameters"] == full["parameters"]
    (fit,) = full["fits"]
    assert (fit["node"], fit["room_bytes"], fit["short_bytes"]) == ("toy.4", 24_000_000_000, 0)
    # Both come to the first rung at a sixteenth, and one of them passes.
    assert full["search_tokens"]["low"] == pytest.approx((1 + 1 / 16) * full["tokens_per_trial"], rel=0.01)
    assert full["search_tokens"]["high"] == 2 * full["tokens_per_trial"]
    trained = full["tokens_per_trial"] * full["flops_per_token"]
    assert fit["hours"]["high"] * 3600 == pytest.approx(2 * trained / 0.5e12, rel=0.6)  # evaluations come on top
    assert fit["dollars"]["high"] == pytest.approx(2 * fit["hours"]["high"])  # a quarter of the machine's 8 dollars
    assert fit["spot_dollars"]["high"] == pytest.approx(fit["hours"]["high"])
    assert "together" in people
    assert "Prices of 2026-11-01: check yours." in people
    by_name = {branch["branch"]: branch for branch in plan["disk"]["branches"]}
    assert by_name["full"]["weights"] > 4 * full["parameters"] > by_name["lora"]["weights"]
    assert re.search(r"At most [\d.]+ MB with one trial at a time, [\d.]+ MB with 4 at once\.", people)


def test_a_plan_says_how_many_trials_a_disk_budget_holds_at_once(capsys, experiment):
    for budget, words in (("1", "up to 4 trials at once"), ("1e-4", "not even one trial")):
        _, _, people = planned(capsys, experiment(gpus=0), "--json", "--set", f"storage.budget_gb={budget}")
        assert f"storage.budget_gb={float(budget):g} holds {words}." in people


def test_what_fits_nowhere_ends_with_the_arithmetic_and_the_ways_out(capsys, tmp_path, experiment):
    arguments = [experiment(gpus=1), "--nodes", nodes_file(tmp_path, 0.5)]
    with pytest.raises(SystemExit) as ended:
        program.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    assert ended.value.code == Exit.NO_ROOM
    assert "full: a worker holds weights" in said.err
    assert "the most room is 0.50 GB, on toy.4" in said.err
    assert "full fits nowhere. One after the other, these help:" in said.out
    assert "  gradient_checkpointing: true: " in said.out
    assert "and then shorter rows (data.max_tokens), a smaller model, or larger GPUs (--nodes FILE)" in said.out


def test_a_winner_that_this_machine_cannot_hold_is_refused_before_the_search(tmp_path, experiment):
    path = experiment(gpus=0)
    check_verifiable(load_experiment(path))
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 2**27, "hidden_size": 2**14}))
    with pytest.raises(ValueError, match=r"search\.space\.lora: a winner is proven on this machine") as error:
        check_verifiable(load_experiment(path))
    lora, full = str(error.value).splitlines()
    weights = r": 2,199,0\d\d,\d{3},\d{3} weights"
    assert re.search(weights + r" x 2 bytes = 4398\.\d GB \+ 0\.6 GB of the process", lora)
    assert re.search(weights + r" x 4 bytes = 8796\.\d GB \+ 0\.6 GB of the process", full)
    with pytest.raises(ValueError, match=r"^search\.space\.full: a winner is proven"):
        check_verifiable(load_experiment(path, ["resources.lora.gpus_per_worker=1"]))
    check_verifiable(load_experiment(path, ["resources.lora.gpus_per_worker=1", "resources.full.gpus_per_worker=1"]))


def test_a_calibration_measures_how_long_a_cpu_takes(capsys, tmp_path, experiment):
    path = experiment(gpus=0)
    drop = "search.space={full: {method: {kind: full}, optimizer: {weight_decay: {uniform: [0, 0.1]}}}}"
    _, plan, people = planned(capsys, path, "--json", "--calibrate", "--set", drop)
    (full,) = plan["branches"]
    (fit,) = full["fits"]
    assert fit["node"] == "this machine"
    seconds = full["tokens_per_trial"] * 4 / full["calibration"]["tokens_per_second"]
    assert fit["hours"]["high"] * 3600 == pytest.approx(seconds, rel=0.6)
    assert "full, measured on cpu: " in people


def test_without_a_calibration_a_cpus_hours_are_not_guessed(capsys, experiment):
    _, plan, people = planned(capsys, experiment(gpus=0), "--json")
    assert [branch["fits"][0]["hours"] for branch in plan["branches"]] == [None, None]
    # One slot serves both, and holds the base of one of them at a time: in bf16 for LoRA, in float32 for full.
    lora, full = (branch["memory"]["parts"] for branch in plan["branches"])
    assert lora["clean copy"] == 0
    assert lora["weights"] < full["weights"] == full["clean copy"]  # its adapters are counted, too
    assert "How long a CPU takes is measured, not computed: --calibrate." in people


def test_the_table_of_nodes_is_whole_and_a_bad_one_is_refused(tmp_path):
    table = load_node_table()
    assert {"g6e.2xlarge", "p4d.24xlarge", "p5.48xlarge"} <= table.nodes.keys()
    assert table.nodes["p5.48xlarge"].dollars_per_gpu_hour == pytest.approx(55.04 / 8)
    bad = tmp_path / "bad.yaml"
    bad.write_text("as_of: 2026-11-01\nnodes: {a: {gpu: X, gpus: 0}}")
    with pytest.raises(ExperimentError, match=r"bad\.yaml: 5 problems\n  nodes\.a\.gpus: .* greater than 0, not 0"):
        load_node_table(bad)


@pytest.mark.parametrize(
    ("device", "types"),
    [
        ("NVIDIA L4", {"g6.2xlarge"}),
        ("NVIDIA L40S", {"g6e.2xlarge"}),
        ("NVIDIA H100 80GB HBM3", {"p5.48xlarge"}),
        ("NVIDIA H200", {"p5en.48xlarge"}),
        ("NVIDIA A100-SXM4-80GB", {"p4de.24xlarge"}),
        ("cpu", set()),
    ],
)
def test_a_card_is_found_in_the_table_by_its_whole_name(device, types):
    assert {name for name, node in load_node_table().nodes.items() if node.is_of(device)} == types


def test_errors_of_the_table_speak_of_a_table_of_machines(tmp_path):
    missing = r"nope\.yaml: no such table of machines; .*planning/nodes\.yaml is one to copy$"
    with pytest.raises(ExperimentError, match=missing):
        load_node_table(tmp_path / "nope.yaml")
    table = tmp_path / "table.yaml"
    table.write_text("- 1")
    with pytest.raises(ExperimentError, match=r"table\.yaml: a table of machines is a mapping"):
        load_node_table(table)
