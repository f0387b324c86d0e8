"""A process group of one: its collectives, and a model that is sharded over one device, with and without CPU offload."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from components.experiment.spec import TrialSpec
from components.storage.open_folder import folder_at
from components.training.workers import OneWorker, TorchWorkers, Workers
from experiments.benchmarks.gpu_kit.cases import Case, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, passed_if
from experiments.benchmarks.gpu_kit.children import Child
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shard_files import ShardFiles, process_group, write_files
from experiments.benchmarks.gpu_kit.step_bounds import near_in_bf16, same_in_fp32
from experiments.benchmarks.gpu_kit.steps import METHODS, Step, difference, full_fp32, next_step, step_spec, take_step

SECONDS = 5.0
FULL = METHODS["full"]
OTHER = "chatglm3-6b"


def one_process(child: Child, settings: Settings, files: ShardFiles) -> Iterator[Check]:
    backend = "nccl" if settings.on_gpu else "gloo"
    with process_group(backend, child), full_fp32():
        yield from run_cases(one_process_cases(backend, child.folder, settings, files), settings)


def one_process_cases(backend: str, scratch: Path, settings: Settings, files: ShardFiles) -> Iterator[Case]:
    yield f"{backend}, a group of one", partial(collectives, backend, settings), SECONDS
    for offload in (False, True):
        asked = f"{files.name}, FSDP2{' with CPU offload' if offload else ''}"
        yield asked, partial(sharded_step, asked, files, offload, scratch, settings), SECONDS
        yield f"{asked}, checkpoint", partial(saved_and_loaded, asked, files, offload, scratch, settings), SECONDS
    yield f"{files.name}, FSDP2, bf16", partial(sharded_in_bf16, files, scratch, settings), SECONDS
    yield f"{OTHER}, FSDP2", partial(sharded_step_of_other, scratch, settings), SECONDS


def collectives(backend: str, settings: Settings) -> Iterator[Check]:
    numbers = torch.arange(4.0, device=settings.device)
    dist.all_reduce(numbers)
    box = [{"step": 3}]
    dist.broadcast_object_list(box, src=0)
    dist.barrier()
    workers = TorchWorkers(settings.device)
    workers.barrier()
    seen_and_wanted = {
        "all_reduce": (numbers.tolist(), [0.0, 1.0, 2.0, 3.0]),
        "broadcast_object_list": (box, [{"step": 3}]),
        "Workers.sum": (workers.sum([0.5, 2.0]), [0.5, 2.0]),
        "Workers.from_first": (workers.from_first({"step": 4}), {"step": 4}),
    }
    wrong = [name for name, (seen, wanted) in seen_and_wanted.items() if seen != wanted]
    asked = f"{backend}, a group of one: {', '.join(seen_and_wanted)}, barriers"
    yield passed_if(not wrong, asked, f"wrong: {', '.join(wrong)}" if wrong else "as they should be")


def sharded_step(asked: str, files: ShardFiles, offload: bool, scratch: Path, settings: Settings) -> Iterator[Check]:
    spec = step_spec(FULL)
    wanted = take_step(files.runner(OneWorker(settings.device), scratch / "whole"), spec)
    step = take_step(files.runner(_sharding(settings, offload=offload), scratch / "sharded"), spec)
    yield same_in_fp32(f"{asked}: a step is that of the whole model", difference(step, wanted))


def sharded_step_of_other(scratch: Path, settings: Settings) -> Iterator[Check]:
    yield from sharded_step(f"{OTHER}, FSDP2", write_files(OTHER, settings), False, scratch / OTHER, settings)


def saved_and_loaded(
    asked: str, files: ShardFiles, offload: bool, scratch: Path, settings: Settings
) -> Iterator[Check]:
    """The second step of a trial, without an interruption and from the checkpoint of the first."""
    spec, folder = step_spec(FULL), scratch / f"checkpoint-{offload}"
    runner = files.runner(_sharding(settings, offload=offload), scratch / "sharded")
    take_step(runner, spec)
    runner.running.save(folder_at(folder), runner.uploads)
    wanted = next_step(runner)
    for kind, workers in (("sharded", _sharding(settings, offload=offload)), ("whole", OneWorker(settings.device))):
        found = difference(_resumed(files, workers, spec, folder, scratch / kind), wanted)
        yield same_in_fp32(f"{asked}: a {kind} model goes on from its checkpoint", found)


def _resumed(files: ShardFiles, workers: Workers, spec: TrialSpec, folder: Path, scratch: Path) -> Step:
    runner = files.runner(workers, scratch)
    runner.start("resumed", spec)
    runner.load(folder_at(folder))
    return next_step(runner)


def sharded_in_bf16(files: ShardFiles, scratch: Path, settings: Settings) -> Iterator[Check]:
    wanted = take_step(files.runner(OneWorker(settings.device), scratch / "whole"), step_spec(FULL))
    runner = files.runner(_sharding(settings, offload=False), scratch / "sharded")
    step = take_step(runner, step_spec(FULL, precision="bf16", checkpointing=True))
    yield near_in_bf16(
        f"{files.name}, FSDP2: a step in bf16 is near the whole model's in fp32", difference(step, wanted)
    )


def _sharding(settings: Settings, *, offload: bool) -> TorchWorkers:
    return TorchWorkers(settings.device, parallel="fsdp", cpu_offload=offload)
