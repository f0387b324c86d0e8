"""The part `equality` of the GPU kit passes, and finds what is planted: each fault is in the product, on one of two ways."""

import time
from dataclasses import replace

import bitsandbytes
import pytest
import torch

from components.models import packed_attention
from components.training import loss, trainer, trial_runner
from components.training.trainer import Trainer
from experiments.benchmarks.gpu_kit import equality, equality_determinism, equality_isolation
from experiments.benchmarks.gpu_kit.equality_determinism import deterministic_runs
from experiments.benchmarks.gpu_kit.equality_isolation import Way, isolation
from experiments.benchmarks.gpu_kit.equality_qlora import against_dequantized
from experiments.benchmarks.gpu_kit.equality_steps import Family, step_in_bf16, step_in_fp32
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.step_bounds import near_in_bf16, same_in_fp32
from experiments.benchmarks.gpu_kit.steps import Step, difference

pytestmark = pytest.mark.long  # the kit runs on a GPU once in a while, and its tests before that


@pytest.fixture
def settings(tmp_path):
    torch.set_num_threads(1)
    return Settings(device_name="cpu", shapes="tiny", scratch=tmp_path, deadline=time.time() + 250)


@pytest.fixture
def llama(settings):
    return Family("llama-1b", settings)


def verdicts(checks):
    return [check.verdict for check in checks]


def test_the_part_passes(settings):
    checks = list(equality.run(settings))
    assert [check for check in checks if check.verdict == "failed"] == []
    passed = [check.asked for check in checks if check.verdict == "passed"]
    for family in ("llama-1b", "chatglm3-6b"):
        of_family = " ".join(asked for asked in passed if asked.startswith(family))
        for words in (
            "LoRA, packed rows, checkpointing",
            "full, a conversation a row:",
            "bf16 is near",
            "QLoRA",
            "sdpa",
        ):
            assert words in of_family
    assert "full: two runs with deterministic algorithms are equal bit by bit" in passed
    reasons = {check.seen.partition(":")[0] for check in checks if check.verdict == "skipped"}
    assert reasons == {
        "no package flash-attn here, or no GPU that it supports",
        "no GPU is used",
        "not for these rows on this device",
        "flex attention compiles kernels for a GPU; the product does not offer it",
    }


def test_a_scale_of_each_micro_batch_is_found(llama, monkeypatch):
    """The mean of means, where a step's micro-batches have unequally many targets."""

    def mean_of_means(self, batches, num_targets):
        return [
            self.parallel_model.backward(batch, 1 / batch.num_targets / len(batches), is_last=True) for batch in batches
        ]

    monkeypatch.setattr(Trainer, "_backward", mean_of_means)
    assert verdicts(step_in_fp32(llama, "full", packing=False)) == ["failed", "failed"]


def test_a_wrong_scale_of_the_attention_is_found(llama, monkeypatch):
    exact = packed_attention.attend_within

    def sharper(query, *others):
        return exact(query * 1.01, *others)

    monkeypatch.setattr(packed_attention, "attend_within", sharper)
    assert verdicts(step_in_fp32(llama, "LoRA", packing=True)) == ["failed", "failed"]


def test_a_wrong_chunk_of_the_head_is_found(llama, monkeypatch):
    exact = loss.weighted_loss_sum

    def heavier(hidden_NH, head, labels_N, weights_N, positions):
        few = positions <= 8  # the reference has all targets of a micro-batch in one chunk
        return exact(hidden_NH, head, labels_N, weights_N, positions) * (1.001 if few else 1.0)

    monkeypatch.setattr(loss, "weighted_loss_sum", heavier)
    assert verdicts(step_in_fp32(llama, "LoRA", packing=True)) == ["failed", "failed"]


def test_a_wrong_gradient_of_checkpointed_layers_is_found(llama, monkeypatch):
    exact = trial_runner.set_gradient_checkpointing

    def leaky(model, spec):
        exact(model, spec)
        if spec.gradient_checkpointing:
            weight = model.get_parameter("model.layers.0.mlp.up_proj.weight")
            weight.register_hook(lambda gradient: gradient * 1.001)

    monkeypatch.setattr(trial_runner, "set_gradient_checkpointing", leaky)
    assert verdicts(step_in_fp32(llama, "full", packing=True)) == ["passed", "failed"]


def test_a_wrong_learning_rate_is_found(llama, monkeypatch):
    exact = trainer.set_learning_rate
    calls = []

    def larger_each_time(optimizer, learning_rate):
        calls.append(learning_rate)
        exact(optimizer, learning_rate * (1 + 0.02 * len(calls)))

    monkeypatch.setattr(trainer, "set_learning_rate", larger_each_time)
    assert verdicts(step_in_fp32(llama, "full", packing=True)) == ["failed", "failed"]


def test_a_loss_that_is_wrong_in_bf16_only_is_found(llama, monkeypatch):
    exact = loss.ScoredModel.forward

    def heavier(self, batch, scale=1.0):
        return exact(self, batch, scale) * (1.002 if self.precision == "bf16" else 1.0)

    assert verdicts(step_in_bf16(llama, "full")) == ["passed"]
    monkeypatch.setattr(loss.ScoredModel, "forward", heavier)
    assert verdicts(step_in_bf16(llama, "full")) == ["failed"]


WEIGHTS = torch.linspace(-1, 1, 1000)
GRADIENTS = torch.cat([torch.linspace(-1, 1, 999), torch.tensor([1e-9])])  # the last one is rounding


def step(gradients=GRADIENTS, learning_rate=1e-3, loss=5.0):
    weights = WEIGHTS - learning_rate * gradients.sign()
    return Step(
        loss=loss,
        grad_norm=float(gradients.norm()),
        learning_rate=1e-3,
        gradients={"weight": gradients},
        weights={"weight": weights},
    )


def fp32_verdict(found):
    return same_in_fp32("?", difference(found, step())).verdict


def test_bounds_hold_what_rounding_does_and_nothing_more():
    assert fp32_verdict(step()) == "passed"
    rounding = GRADIENTS * (1 + 1e-6 * torch.linspace(-1, 1, 1000))
    assert fp32_verdict(step(rounding)) == "passed"
    other_sign = GRADIENTS.clone()
    other_sign[-1] = -1e-9
    found = difference(step(other_sign), step())
    assert (found.unclear, found.flipped, round(found.weights, 2)) == (1, 1, 2.0)
    assert same_in_fp32("?", found).verdict == "passed"
    assert fp32_verdict(replace(step(), weights={"weight": step().weights["weight"] + 2e-5})) == "failed"
    assert fp32_verdict(step(GRADIENTS * 1.001)) == "failed"
    assert fp32_verdict(step(loss=5.001)) == "failed"
    assert fp32_verdict(step(learning_rate=1.02e-3)) == "failed"
    assert fp32_verdict(step(GRADIENTS * torch.nan)) == "failed"
    assert fp32_verdict(step(loss=float("nan"))) == "failed"


def test_bf16_may_be_some_percent_away_and_not_more():
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * GRADIENTS.norm() / 1000**0.5
    assert near_in_bf16("?", difference(step(GRADIENTS + 0.03 * noise), step())).verdict == "passed"
    assert near_in_bf16("?", difference(step(GRADIENTS + 0.2 * noise), step())).verdict == "failed"
    assert near_in_bf16("?", difference(step(GRADIENTS * torch.nan), step())).verdict == "failed"


@pytest.fixture
def rows(settings):
    return random_dataset(settings.scratch / "rows", 512, train=(24, 40), evaluate=[8]).train


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_that_lets_packed_rows_see_each_other_is_found(settings, rows, monkeypatch, precision):
    exact = equality_isolation.model_inputs

    def one_sequence_a_row(batch, attention):
        inputs = exact(batch, attention)
        return {**inputs, "position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}

    way = Way("sdpa", precision)
    assert verdicts(isolation("llama-1b", way, rows, settings)) == ["passed"]
    monkeypatch.setattr(equality_isolation, "model_inputs", one_sequence_a_row)
    assert verdicts(isolation("llama-1b", way, rows, settings)) == ["failed"]


@pytest.mark.parametrize("says", [True, False])
def test_a_probe_that_always_says_the_same_is_found(settings, rows, monkeypatch, says):
    monkeypatch.setattr(loss, "isolates_packed_rows", lambda *_, **__: says)
    assert verdicts(isolation("llama-1b", Way("eager", "fp32"), rows, settings)) == ["failed"]


def test_packed_weights_that_compute_something_else_are_found(settings, monkeypatch):
    exact = bitsandbytes.nn.Linear4bit.forward
    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda self, x: exact(self, x) * 1.001)
    checks = list(against_dequantized("llama-1b", settings))
    assert verdicts(checks[:2]) == ["failed", "failed"]  # in fp32; bf16 rounds more than that away


def test_two_runs_that_are_not_equal_are_found(settings, monkeypatch):
    exact, numbers = Trainer.step, iter(range(1, 100))

    def slightly_other(self):
        exact(self)
        with torch.no_grad():
            next(self.model.parameters()).add_(1e-6 * next(numbers))

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is what it was afterwards
    monkeypatch.setattr(Trainer, "step", slightly_other)
    monkeypatch.setattr(equality_determinism, "METHODS", {"full": equality_determinism.METHODS["full"]})
    try:
        equal, cost = deterministic_runs(None, settings, {"full": 1.0})
    finally:
        torch.use_deterministic_algorithms(False)
    assert equal.verdict == "failed"
    assert equal.seen.startswith("not equal: losses up to ")
    assert cost.verdict == "measured"
