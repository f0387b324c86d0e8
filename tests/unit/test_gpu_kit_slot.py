"""The kit's part `slot`: trials that leave nothing behind pass, and what they leave is found."""

import time

import pytest
import torch

from components.models.base.reusable import ReusableBase
from components.training import trial_runner
from components.training.data_parallel import ReplicatedModel
from experiments.benchmarks.gpu_kit import slot
from experiments.benchmarks.gpu_kit.meters import Ledger
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of, random_model
from experiments.benchmarks.gpu_kit.slot_turns import LORA, TURNS, digest_of

pytestmark = pytest.mark.long  # the kit runs on a GPU once in a while, and its tests before that


@pytest.fixture
def settings(tmp_path):
    return Settings(device_name="cpu", shapes="tiny", scratch=tmp_path, deadline=time.time() + 600)


def verdicts_of(settings):
    """What was asked, up to its first colon, by verdict."""
    found = {}
    for check in slot.run(settings):
        found.setdefault(check.verdict, []).append(check.asked.partition(" with the base")[0].partition(":")[0])
    return found


def test_ten_trials_and_one_that_dies_leave_the_slot_as_it_was(settings):
    found = verdicts_of(settings)
    assert found.keys() == {"passed", "measured"}
    assert len(TURNS) == 10
    assert [asked for asked in found["passed"] if asked.endswith("begins")] == [
        *(f"trial {number}, {turn.name}, begins" for number, turn in enumerate(TURNS, start=1)),
        "the trial after that, LoRA, begins",
    ]


def test_gradients_that_somebody_keeps_are_found(settings, monkeypatch):
    kept = []
    clip = ReplicatedModel.clip_gradients

    def hoarding(self, max_norm):
        kept.extend(weight.grad for weight in self.scored.parameters() if weight.grad is not None)
        return clip(self, max_norm)

    monkeypatch.setattr(ReplicatedModel, "clip_gradients", hoarding)
    monkeypatch.setattr(slot, "TURNS", TURNS[:2])
    failed = verdicts_of(settings)["failed"]
    assert "trial 2, LoRA, dropout, checkpointing, begins" in failed
    assert "nothing grows over 3 starts" in failed
    assert "trial 1, LoRA, begins" not in failed


def test_a_base_that_is_not_restored_is_found(settings, monkeypatch):
    clean_up = ReusableBase._clean_up

    def forgetful(self, wanted):
        self._clean = None
        clean_up(self, wanted)

    monkeypatch.setattr(ReusableBase, "_clean_up", forgetful)
    monkeypatch.setattr(slot, "TURNS", (LORA, *TURNS[4:8]))
    failed = verdicts_of(settings)["failed"]
    assert failed == [
        "trial 3, full, checkpointing, begins",
        "trial 4, LoRA on full's base, begins",
        "trial 5, full, begins",
        "trial 5, full",
    ]


def test_a_hook_that_stays_on_the_base_is_found(settings, monkeypatch):
    """As a trial with checkpointing once left one: no weight differs, but the trials after it compute and keep more."""

    def twice(model, spec):
        if spec.gradient_checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()

    monkeypatch.setattr(trial_runner, "set_gradient_checkpointing", twice)
    monkeypatch.setattr(slot, "TURNS", (*TURNS[:2], LORA))
    assert "trial 3, LoRA" in verdicts_of(settings)["failed"]


def test_a_trial_that_does_not_die_is_found(settings, monkeypatch):
    monkeypatch.setattr(slot, "TURNS", (LORA,))
    monkeypatch.setattr(Ledger, "limited_to", lambda self, room: self)
    found = verdicts_of(settings)
    assert found["failed"] == ["LoRA of too many rows ends by torch.OutOfMemoryError"]


def test_what_a_dead_trial_leaves_behind_is_found(settings, monkeypatch):
    monkeypatch.setattr(slot, "TURNS", (LORA,))
    kept = []
    die = slot._Slot._die

    def hoarding(self):
        line = die(self)
        kept.append(self.runner.run)
        return line

    monkeypatch.setattr(slot._Slot, "_die", hoarding)
    assert "the trial after that, LoRA, begins" in verdicts_of(settings)["failed"]


def test_any_changed_bit_changes_the_digest(settings):
    base = random_model(config_of("llama-1b", settings), torch.device("cpu"), dtype="bf16")
    before = digest_of(base)
    assert digest_of(base) == before
    weight = base.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(-1)[[5, 6]] = weight.view(-1)[[6, 5]]
        assert digest_of(base) != before
        weight.view(-1)[[5, 6]] = weight.view(-1)[[6, 5]]
    assert digest_of(base) == before
