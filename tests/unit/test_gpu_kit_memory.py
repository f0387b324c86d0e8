"""The kit's part `memory`: a plan that is right passes, and each bound can be missed."""

import time

import pytest
import torch

from components.planning.memory import MemoryPlan
from components.training.trainer import Trainer
from experiments.benchmarks.gpu_kit import memory, memory_refusal, memory_trials
from experiments.benchmarks.gpu_kit.memory_trials import MemoryCase, Runners
from experiments.benchmarks.gpu_kit.meters import Ledger
from experiments.benchmarks.gpu_kit.settings import Settings

pytestmark = pytest.mark.long  # the kit runs on a GPU once in a while, and its tests before that

CASE = MemoryCase(shape="llama-1b", method="LoRA", tokens=1024)


@pytest.fixture
def settings(tmp_path):
    return Settings(device_name="cpu", shapes="tiny", scratch=tmp_path, deadline=time.time() + 600)


def verdicts(checks):
    return [(check.verdict, check.asked) for check in checks if check.verdict != "passed"]


def test_the_plan_of_every_trial_is_what_it_takes_and_what_does_not_fit_is_refused(settings):
    checks = list(memory.run(settings))
    assert verdicts(checks) == []
    asked = [check.asked for check in checks]
    assert len(set(asked)) == len(asked) == len(memory.FIRST + memory.THEN) + 4


def check_of(settings):
    part = memory._Memory(settings)
    CASE.write_rows(settings)
    (check,) = part.check(CASE, lambda case: memory_trials.plan_of(case, settings))
    return check


def test_a_plan_that_is_wrong_by_30_percent_is_found(settings, monkeypatch):
    right = memory_trials.memory_plan

    def wrong(*arguments):
        plan = right(*arguments)
        return plan.model_copy(update={"parts": {name: int(1.3 * size) for name, size in plan.parts.items()}})

    monkeypatch.setattr(memory_trials, "memory_plan", wrong)
    check = check_of(settings)
    assert check.verdict == "failed"
    assert check.figures["planned_bytes"] == pytest.approx(1.3 * check.figures["live_bytes"], rel=0.01)


def test_a_step_that_takes_more_than_is_planned_is_found(settings, monkeypatch):
    kept = []
    take = Trainer._backward

    def hoarding(self, batches, num_targets):
        kept.append(torch.zeros(100_000))
        return take(self, batches, num_targets)

    monkeypatch.setattr(Trainer, "_backward", hoarding)
    assert check_of(settings).verdict == "failed"


def plan_with(tensors, process=800):
    parts = {"weights": tensors, "allocator": round(0.05 * tensors), "process": process}
    return MemoryPlan(device="gpu", fullest_in="training", parts=parts)


@pytest.mark.parametrize(
    ("allocated", "reserved", "verdict"),
    [
        (10_000, 10_400, "passed"),
        (10_400, 10_500, "passed"),  # workspaces, within the plan's waste
        (10_000, 10_501, "failed"),  # the card gives more than was planned
        (9_000, 9_900, "failed"),  # tensors 11 % too many
        (9_500, 9_500, "failed"),  # the whole 10.5 % too much
        (10_600, 10_500, "failed"),  # tensors more than 5 % too few
    ],
)
def test_on_a_card_the_plan_must_be_above_what_was_reserved_and_not_far(allocated, reserved, verdict):
    assert memory.check_card("", plan_with(10_000), allocated, reserved).verdict == verdict


def refusals(settings):
    return list(memory_refusal.refused_and_forced(settings, Ledger(), Runners(settings)))


def test_a_card_on_which_all_fits_refuses_nothing_and_that_is_found(settings, monkeypatch):
    monkeypatch.setattr(memory_refusal, "OF_TENSORS", 1.01)
    monkeypatch.setattr(memory_refusal, "ROWS", (1,))
    (check,) = refusals(settings)
    assert (check.verdict, check.seen) == ("failed", "it refuses nothing")


def test_a_trial_that_runs_though_it_was_refused_is_found(settings, monkeypatch):
    monkeypatch.setattr(Ledger, "enter", lambda self, tensor: None)
    assert ("failed", "forced, it dies of torch.OutOfMemoryError") in verdicts(refusals(settings))


def test_what_a_dead_trial_leaves_behind_is_found(settings, monkeypatch):
    kept = []
    start = memory_refusal.RandomRunner.start

    def hoarding(self, *arguments):
        start(self, *arguments)
        kept.append(self.running.model)

    monkeypatch.setattr(memory_refusal.RandomRunner, "start", hoarding)
    (found,) = verdicts(refusals(settings))
    assert found[1].startswith("what it took is free again")
