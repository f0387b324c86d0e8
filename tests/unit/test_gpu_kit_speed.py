"""The kit's part speed: it passes without a GPU, and each of its bounds can be missed."""

import dataclasses
import time
import warnings
from types import SimpleNamespace

import pytest
import torch

from components.experiment.spec import ModelSpec
from components.planning.dry_run import MicroBatch, dry_run_step
from components.training.loss import ScoredModel
from experiments.benchmarks.gpu_kit import speed, speed_variants
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of
from experiments.benchmarks.gpu_kit.speed import Fit, fit_of
from experiments.benchmarks.gpu_kit.speed_bench import METHODS, Bench, Measured, Step, Subject
from experiments.benchmarks.gpu_kit.speed_peak import model_flops
from experiments.benchmarks.gpu_kit.speed_profile import by_group, covered, group_of, lines_of
from experiments.benchmarks.gpu_kit.speed_rows import as_hugging_face_has_them, pad, row_kinds

pytestmark = pytest.mark.long  # the kit runs on a GPU once in a while, and its tests before that

FULL_1B = Subject(shape="llama-1b", method="full")


@pytest.fixture
def settings(tmp_path):
    torch.set_num_threads(1)
    return Settings(device_name="cpu", shapes="tiny", scratch=tmp_path, deadline=time.time() + 250)


@pytest.fixture
def rows():
    return row_kinds(tiny=True, per_pass=1)


def race(settings, rows_name="packed rows"):
    return list(speed._Speed(settings).race(FULL_1B, (rows_name,)))


def test_every_case_passes_without_a_gpu_or_says_why_it_cannot(settings):
    checks = list(speed.run(settings))
    assert [check for check in checks if check.verdict == "failed"] == []
    assert all("GPU" in c.seen or "flash-attn" in c.seen for c in checks if c.verdict == "skipped")
    beside = [check for check in checks if "beside transformers' Trainer" in check.asked]
    assert len(beside) == 7
    assert all(check.figures["ratio"] > 0 and 0 < check.figures["share_of_peak"] < 1.5 for check in beside)
    assert sum("the gradient's norm of transformers' Trainer" in check.asked for check in checks) == 7
    profiled = next(check for check in checks if "where a step's time goes" in check.asked)
    assert profiled.figures["matmul"] > 0
    assert profiled.figures["attention"] > 0


def test_a_wrong_scale_in_the_loss_is_seen_beside_transformers_trainer(settings, monkeypatch):
    forward = ScoredModel.forward
    monkeypatch.setattr(ScoredModel, "forward", lambda self, batch, scale=1.0: 1.01 * forward(self, batch, scale))
    (same,) = (check for check in race(settings) if "the gradient's norm of" in check.asked)
    assert same.verdict == "failed"
    assert same.figures["loss"] == pytest.approx(0.01, rel=0.01)


def test_targets_that_are_left_out_are_seen_beside_transformers_trainer(settings, monkeypatch):
    monkeypatch.setattr(speed.Rows, "steps", lambda self, store, seed, count: [[(0,), (1,)]] * count)
    assert "failed" in {check.verdict for check in race(settings)}


def test_an_attention_that_computes_something_else_is_seen(settings, monkeypatch):
    usual = speed_variants._attention

    def other(bench, attention):
        with torch.no_grad():
            bench.base.get_output_embeddings().weight.mul_(1.5)
        return usual(bench, attention)

    monkeypatch.setattr(speed_variants, "_attention", other)
    (eager,) = (check for check in speed_variants._attentions(settings) if "eager" in check.asked)
    assert eager.verdict == "failed"


def trial_of(subject, rows, *, ours, theirs):
    """Two ways to take three steps of 1,000 tokens and 3e13 operations, at so many seconds each."""

    def steps(seconds):
        made = [Step(loss=1.0, grad_norm=1.0, seconds=seconds)] * 3
        return Measured(tokens=[1000] * 3, flops=[3e13] * 3, steps=made)

    bench = SimpleNamespace(subject=subject, checkpointing=False)
    return SimpleNamespace(bench=bench, rows=rows, ours=steps(ours), theirs=steps(theirs))


def test_on_a_gpu_a_step_may_not_be_slower_than_transformers(settings, rows):
    on_gpu = speed._Speed(dataclasses.replace(settings, device_name="cuda"))
    on_gpu.peak = 1e15
    for ours, verdict in ((0.10, "passed"), (0.102, "passed"), (0.11, "failed")):
        trial = trial_of(FULL_1B, rows["packed rows"], ours=ours, theirs=0.10)
        check = next(on_gpu.checks_of(trial))
        assert (check.verdict, check.figures["ratio"]) == (verdict, pytest.approx(0.10 / ours))
        assert check.figures["share_of_peak"] == pytest.approx(0.03 / ours)


def test_the_number_to_beat_is_asked_of_the_cards_it_was_measured_on_only(settings, rows, monkeypatch):
    subject, whole = Subject(shape="llama2-7b", method="LoRA"), rows["whole rows"]
    for comparable, ours, verdict in ((True, 0.07, "passed"), (True, 0.071, "failed"), (False, 0.07, "measured")):
        monkeypatch.setattr(speed, "_is_comparable", lambda _, comparable=comparable: comparable)
        *_, last = speed._Speed(settings).checks_of(trial_of(subject, whole, ours=ours, theirs=0.1))
        assert last.verdict == verdict
        assert "14,110" in last.asked


def test_what_fits_is_what_the_plan_says(settings, rows, monkeypatch):
    packed = rows["packed rows"]
    plain, recomputed = (FULL_1B.planned_bytes(packed, settings, checkpointing=flag) for flag in (False, True))
    assert recomputed < plain
    logits = 64 * packed.tokens_per_pass * config_of("llama-1b", settings).vocab_size
    monkeypatch.setattr(speed, "LOGIT_BYTES", 64)  # more than a tiny model's checkpointing saves, as in a real one
    known = {False: plain, True: recomputed}
    monkeypatch.setattr(Subject, "planned_bytes", lambda *_, checkpointing: known[checkpointing])
    cases = {
        plain + logits: Fit(checkpointing=False, beside=True),
        recomputed + logits: Fit(checkpointing=True, beside=True),
        plain: Fit(checkpointing=False, beside=False),
        recomputed: Fit(checkpointing=True, beside=False),
        recomputed / 2: None,
    }
    for room, expected in cases.items():
        monkeypatch.setattr(speed, "room", lambda _, room=room: (room + 1) / speed.FILL)
        assert fit_of(FULL_1B, packed, settings) == expected
    (check,) = race(settings)
    assert check.verdict == "skipped"


def test_nothing_begins_without_time(settings):
    late = dataclasses.replace(settings, deadline=time.time() - 1)
    assert {check.verdict for check in speed.run(late)} == {"skipped"}


def test_the_operations_of_full_fine_tuning_are_those_of_a_dry_run(settings, rows):
    tokens = 64
    config, spec = config_of("llama-1b", settings), FULL_1B.spec(rows["packed rows"], checkpointing=False)
    batch = MicroBatch(rows=1, tokens=tokens, targets=tokens)
    dry_run = dry_run_step(config, ModelSpec(path="random"), spec, batch)
    bench = Bench(FULL_1B, settings)
    head_again = 2 * tokens * config.vocab_size * config.hidden_size  # the logits are computed again backward
    attention = 3 * 4 * config.num_hidden_layers * config.hidden_size * tokens**2
    without_attention = model_flops(bench.model, config, [1] * tokens) - attention / tokens
    assert 0 <= dry_run.training_flops - head_again - without_attention <= 1.2 * attention
    whole = model_flops(bench.model, config, [tokens])
    assert whole - without_attention == pytest.approx(attention / 2, rel=0.02)


def test_lora_has_no_gradient_of_the_weights_it_leaves_alone(settings):
    assert METHODS["LoRA"].rank == 16
    bench = Bench(Subject(shape="llama-1b", method="LoRA"), settings)
    frozen = sum(
        w.weight.numel() for w in bench.base.modules() if type(w) is torch.nn.Linear and not w.weight.requires_grad
    )
    trained = sum(weight.numel() for weight in bench.model.parameters() if weight.requires_grad)
    per_token = model_flops(bench.model, bench.config, [1] * 10) / 10
    assert per_token == pytest.approx(4 * frozen + 6 * trained, rel=0.01)


def test_rows_for_transformers_are_those_of_the_product(settings, rows):
    for name in ("packed rows", "short chats, padded"):
        dataset = rows[name].dataset(settings.scratch / name, 500, steps=2)
        items = as_hugging_face_has_them(dataset.train, [(0, 1), (2,)], packing=rows[name].packing)
        batch = pad(items)
        token_ids, weights = dataset.train[1]
        begins = int(dataset.train.lengths[0])
        assert batch["input_ids"].shape[1] % 8 == 0
        assert batch["input_ids"][0, begins : begins + len(token_ids)].tolist() == token_ids.tolist()
        targets = [t if w > 0 else -100 for t, w in zip(token_ids.tolist(), weights.tolist(), strict=True)]
        targets[0] = -100  # nothing before it predicts it
        assert batch["labels"][0, begins : begins + len(token_ids)].tolist() == targets
        if rows[name].packing:
            assert batch["position_ids"][0, begins] == 0
            assert "attention_mask" not in batch
        else:
            assert batch["attention_mask"].sum() == sum(len(item["input_ids"]) for item in items)


@pytest.mark.parametrize(
    ("kernel", "group"),
    [
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT", "matmul"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2_tn_align8>", "matmul"),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", "attention"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_3", "attention"),
        (
            "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<..., FusedAdamMathFunctor<float>>",
            "optimizer",
        ),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", "elementwise"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)>", "elementwise"),
        ("void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, MeanOps>>", "elementwise"),
        ("void (anonymous namespace)::softmax_warp_forward<float, float, float, 10, true, false>", "loss"),
        ("Memcpy HtoD (Pageable -> Device)", "memcpy"),
        ("void at::native::indexSelectSmallIndex<c10::BFloat16, long>", "index"),
        ("aten::_fused_adamw_", "optimizer"),
        ("aten::mm", "matmul"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("ncclDevKernel_AllReduce", "other"),
    ],
)
def test_kernels_are_grouped_by_the_work_they_do(kernel, group):
    assert group_of(kernel) == group


def test_time_that_overlaps_is_counted_once():
    assert covered([(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (5.0, 6.0)]) == 4.0
    assert covered([]) == 0.0
    assert by_group([("aten::mm", 1.0), ("aten::bmm", 2.0), ("aten::mul", 4.0)]) == {"matmul": 3.0, "elementwise": 4.0}


def test_places_that_wait_are_named_with_how_often_they_do():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    ((place, count),) = lines_of(caught)
    assert place.startswith("test_gpu_kit_speed.py:")
    assert count == 3
