"""Two processes on one device: what they train together is what one process trains of both shares."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from components.storage.open_folder import folder_at
from components.training.workers import OneWorker, TorchWorkers
from experiments.benchmarks.gpu_kit.cases import Case, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if, skipped
from experiments.benchmarks.gpu_kit.children import Child
from experiments.benchmarks.gpu_kit.part_process import line_of
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shard_files import ShardFiles, join_group, process_group
from experiments.benchmarks.gpu_kit.step_bounds import same_in_fp32
from experiments.benchmarks.gpu_kit.steps import (
    METHODS,
    difference,
    full_fp32,
    next_step,
    starting_weights,
    step_spec,
    take_step,
)

SECONDS = 5.0
NCCL_ASKED = "NCCL, two processes on one GPU: it says that it cannot"
DUPLICATE = "Duplicate GPU"  # NCCL's own words


def two_processes(child: Child, settings: Settings, files: ShardFiles) -> Iterator[Check]:
    # Both must begin the same cases, so no clock decides that; who has started them ends them in time.
    settings = replace(settings, deadline=math.inf)
    with process_group("gloo", child), full_fp32():
        yield from run_cases(two_process_cases(child.folder, settings, files), settings)


def two_process_cases(scratch: Path, settings: Settings, files: ShardFiles) -> Iterator[Case]:
    for name in METHODS:
        asked = f"{files.name}, {name}, DDP of two processes over gloo"
        yield asked, partial(replicated_step, asked, files, name, scratch, settings), SECONDS
    asked = f"{files.name}, FSDP2 of two processes over gloo"
    yield asked, partial(sharded_steps, asked, files, scratch, settings), SECONDS


def replicated_step(asked: str, files: ShardFiles, method: str, scratch: Path, settings: Settings) -> Iterator[Check]:
    """Each process has two of the four rows, in two micro-batches."""
    spec = step_spec(METHODS[method], micro_rows=1)
    one = files.runner(OneWorker(settings.device), scratch / "one")
    start = starting_weights(one, spec)
    wanted = take_step(one, spec, start)
    step = take_step(files.runner(TorchWorkers(settings.device), scratch / "ddp"), spec, start)
    yield same_in_fp32(f"{asked}: a step is that of one process with both shares", difference(step, wanted))


def sharded_steps(asked: str, files: ShardFiles, scratch: Path, settings: Settings) -> Iterator[Check]:
    """A step, and the next one of one process that loads what both have written."""
    asked = f"{asked}: a step is that of one process, which goes on from their checkpoint"
    spec, folder = step_spec(METHODS["full"], micro_rows=1), scratch / "checkpoint"
    one = files.runner(OneWorker(settings.device), scratch / "one")
    first = take_step(one, spec)
    second = next_step(one)
    try:
        runner = files.runner(TorchWorkers(settings.device, parallel="fsdp"), scratch / "fsdp")
        step = take_step(runner, spec)
        runner.running.save(folder_at(folder), runner.uploads)
        runner.workers.barrier()
    except (RuntimeError, NotImplementedError, ValueError) as error:
        if not settings.on_gpu:
            raise
        yield skipped(asked, f"gloo cannot with CUDA tensors, and the product does not ask it to: {line_of(error)}")
        return
    one.start("resumed", spec)
    one.load(folder_at(folder))
    yield same_in_fp32(f"{asked}: the step", difference(step, first))
    yield same_in_fp32(f"{asked}: the next", difference(next_step(one), second))


def nccl_of_two(child: Child, settings: Settings, files: ShardFiles) -> Iterator[Check]:
    """NCCL makes its connections in the first collective."""
    join_group("nccl", child)
    numbers = torch.ones(2, device=settings.device)
    try:
        dist.all_reduce(numbers)
        torch.cuda.synchronize()
    except RuntimeError as error:
        clear = DUPLICATE in str(error)
        yield passed_if(clear, NCCL_ASKED, str(error).strip().splitlines()[-1] if clear else line_of(error))
    else:
        yield measured(NCCL_ASKED, f"it can: the sum of two ones is {numbers[0]:.0f}")
    os._exit(0)  # the destructor of a group that has failed may wait endlessly
