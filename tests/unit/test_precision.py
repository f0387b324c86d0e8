"""One precision for all that a model is asked to do, and logits only where a token is scored, where that is all there is."""

import logging

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from components.data.batch import Batch
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec, TrialSpec
from components.models.adapters import attach_lora
from components.planning.dry_run import MicroBatch, dry_run_step
from tests.support.families import (
    FAMILIES,
    GROUPED,
    Banning,
    Capped,
    Dropping,
    OtherHead,
    Scaling,
    model_of,
    scored_model,
)


def reason(model, precision="fp32"):
    scored = scored_model(model, precision)
    scored.look_at_head()
    return scored.whole_logits


def batch_of(token_ids, positions, labels):
    return Batch(
        token_ids_BT=torch.tensor(token_ids),
        labels_BT=torch.tensor(labels),
        weights_BT=torch.ones(len(labels), len(labels[0])),
        position_ids_BT=torch.tensor(positions),
        segment_ids_BT=torch.ones(len(labels), len(labels[0]), dtype=torch.int64),
    )


PACKED = batch_of([[5, 6, 7, 8, 9, 10, 11, 12]], [[0, 1, 2, 3, 0, 1, 2, 3]], [[-100, 7, 8, 9, -100, -100, 12, 13]])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_to_its_logits_is_known_by_its_operations(family, precision):
    config, operations = FAMILIES[family]
    expected = f"it does more to its logits than its head says: {operations}" if operations else ""
    assert reason(model_of(config), precision) == expected


@pytest.mark.parametrize("family", ["llama", "a bias in the head", "bloom", "a soft cap"])
def test_either_way_gives_the_losses_of_the_models_own_logits(family):
    model = model_of(FAMILIES[family][0]).eval()
    batch = batch_of([[5, 6, 7, 8]], [[0, 1, 2, 3]], [[6, 7, -100, 9]])
    with torch.no_grad():
        losses, _ = scored_model(model).losses(batch)
        logits = model(input_ids=batch.token_ids_BT).logits[0, [0, 1, 3]]
    expected = nn.functional.cross_entropy(logits, torch.tensor([6, 7, 9]), reduction="none")
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Capped, "it does more to its logits than its head says: div, tanh, mul"),
        (Banning, "it does more to its logits than its head says: fill_"),
        (OtherHead, "its logits come from other operations, weights or positions than its head's"),
        (Dropping, "it does more to its logits than its head says: empty_like, bernoulli_, div_, mul"),
        (Scaling, "it gives its decoder other inputs than those it is given"),
    ],
)
def test_what_a_strange_model_does_is_seen_and_its_whole_logits_are_taken(kind, expected, caplog):
    torch.manual_seed(0)
    scored = scored_model(kind(LlamaConfig(**GROUPED))).train()
    with caplog.at_level(logging.WARNING):
        scored(PACKED)
    assert scored.whole_logits.startswith(expected)
    assert f"logits are computed at all positions, which takes memory: {scored.whole_logits}" in caplog.text
    assert scored.model.training


def test_an_adapter_on_the_head_is_a_part_of_the_head():
    method = LoraMethod(rank=2, dropout=0.1, target_modules=("lm_head", "q_proj"))
    assert reason(attach_lora(model_of(LlamaConfig(**GROUPED)), method), "bf16") == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["full", "lora"])
def test_the_probe_of_packed_rows_is_not_misled_by_bf16(dtype):
    for seed in range(3):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**GROUPED)).to(dtype)
        assert scored_model(model, "bf16").isolates_packed_rows()
    bloom = model_of(FAMILIES["bloom"][0])  # its mask takes no notice of positions
    assert not scored_model(bloom, "bf16").isolates_packed_rows()


@pytest.mark.parametrize("family", ["llama", "granite", "gemma3 beside its vision tower"])
def test_a_rehearsal_knows_what_a_trial_will_know_of_the_logits(family):
    config, operations = FAMILIES[family]
    batch = MicroBatch(rows=2, tokens=16, targets=8)
    dry_run = dry_run_step(config, ModelSpec(path="a model"), TrialSpec(method=FullMethod(), precision="bf16"), batch)
    assert dry_run.whole_logits == reason(model_of(config))
    assert bool(dry_run.whole_logits) == bool(operations)
