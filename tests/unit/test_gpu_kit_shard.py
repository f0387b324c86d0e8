"""The part `shard` of the GPU kit passes in process groups of gloo, and finds what is planted in the product."""

import time
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from components.training import trainer
from components.training.data_parallel import ReplicatedModel, ShardedModel
from components.training.workers import TorchWorkers
from experiments.benchmarks.gpu_kit.cases import run_cases
from experiments.benchmarks.gpu_kit.checks import passed_if
from experiments.benchmarks.gpu_kit.children import Child, Children
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shard_files import process_group, write_files
from experiments.benchmarks.gpu_kit.shard_of_one import (
    collectives,
    one_process_cases,
    saved_and_loaded,
    sharded_in_bf16,
    sharded_step,
)
from experiments.benchmarks.gpu_kit.shard_of_two import replicated_step, sharded_steps, two_process_cases

pytestmark = pytest.mark.long  # the kit runs on a GPU once in a while, and its tests before that


def settings_in(folder):
    torch.set_num_threads(1)
    return Settings(device_name="cpu", shapes="tiny", scratch=folder, deadline=time.time() + 250)


def verdicts(checks):
    return [check.verdict for check in checks]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """(settings, files) in a group of this process alone."""
    settings = settings_in(tmp_path_factory.mktemp("alone"))
    files = write_files("llama-1b", settings)
    with process_group("gloo", Child(rank=0, count=1, folder=settings.scratch)):
        yield settings, files


def test_a_group_of_one_passes(alone, tmp_path):
    settings, files = alone
    checks = list(run_cases(one_process_cases("gloo", tmp_path, settings, files), settings))
    assert [check for check in checks if check.verdict != "passed"] == []
    assert len(checks) == 9


def test_a_wrong_collective_is_found(alone, monkeypatch):
    monkeypatch.setattr(TorchWorkers, "sum", lambda self, values: [2 * value for value in values])
    (check,) = collectives("gloo", alone[0])
    assert (check.verdict, check.seen) == ("failed", "wrong: Workers.sum")


def test_a_wrong_gradient_of_sharded_weights_is_found(alone, tmp_path, monkeypatch):
    settings, files = alone
    exact = ShardedModel.backward

    def heavier(self, batch, scale, *, is_last):
        return exact(self, batch, scale * 1.2, is_last=is_last)

    monkeypatch.setattr(ShardedModel, "backward", heavier)
    assert verdicts(sharded_step("?", files, True, tmp_path, settings)) == ["failed"]
    assert verdicts(sharded_in_bf16(files, tmp_path, settings)) == ["failed"]


@pytest.mark.parametrize("forgotten", ["load_optimizer", "load_weights"])
def test_a_checkpoint_that_is_not_read_whole_is_found(alone, tmp_path, monkeypatch, forgotten):
    settings, files = alone
    monkeypatch.setattr(trainer, forgotten, lambda *_: None)
    assert verdicts(saved_and_loaded("?", files, False, tmp_path, settings)) == ["failed", "failed"]


def two_processes_and_what_is_planted_in_them(child, settings, files):
    """The cases as they are; then, as one check each, whether a case fails with a fault."""
    with process_group("gloo", child):
        yield from run_cases(two_process_cases(child.folder, settings, files), settings)
        found = replicated_step("?", files, "full", child.folder / "apart", settings)
        with mock.patch.object(ReplicatedModel, "__init__", without_ddp):
            yield passed_if(verdicts(found) == ["failed"], "gradients that are not summed", "found")
        found = sharded_steps("?", files, child.folder / "mean", settings)
        with mock.patch.object(ShardedModel, "backward", mean_of_workers):
            yield passed_if("failed" in verdicts(found), "gradients that are averaged", "found")
        dist.barrier()


def without_ddp(self, scored, workers):
    self.scored, self.workers, self.ddp = scored, workers, None


summed_over_workers = ShardedModel.backward


def mean_of_workers(self, batch, scale, *, is_last):
    return summed_over_workers(self, batch, scale / self.workers.count, is_last=is_last)


def test_two_processes_pass_and_what_is_planted_in_them_is_found(tmp_path):
    settings = settings_in(tmp_path)
    files = write_files("llama-1b", settings)
    work = two_processes_and_what_is_planted_in_them
    with Children(work, settings, files, count=2, settings=settings, seconds=200.0) as started:
        checks = list(started.checks("two processes end by themselves"))
    assert [(check.verdict, check.asked.partition(":")[0]) for check in checks] == [
        ("passed", "llama-1b, LoRA, DDP of two processes over gloo"),
        ("passed", "llama-1b, full, DDP of two processes over gloo"),
        ("passed", "llama-1b, FSDP2 of two processes over gloo"),
        ("passed", "llama-1b, FSDP2 of two processes over gloo"),
        ("passed", "gradients that are not summed"),
        ("passed", "gradients that are averaged"),
    ]
