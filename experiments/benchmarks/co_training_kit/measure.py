"""Measures steps of several trials: together, and one after another, in turn."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from components.planning.calibrate import load_kernels, resident
from components.training.co_training import CoTraining
from components.training.joint_step import step_together
from experiments.benchmarks.co_training_kit.trials import SIZES, Setting, dataset_of, group_of
from experiments.benchmarks.step_kit.contestants import forget_peak


@dataclass(frozen=True, slots=True, kw_only=True)
class Seconds:
    """Of one step of every trial."""

    clock: float
    cpu: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """`peak_bytes`: of the steps together, beyond what the process has when its libraries are loaded (on a GPU: of all)."""

    size: str
    trials: int
    together: tuple[Seconds, ...]
    in_turn: tuple[Seconds, ...]
    peak_bytes: int

    @property
    def tokens(self) -> int:
        return self.trials * SIZES[self.size].tokens_per_step


def measured_in_process(
    size: str, count: int, setting: Setting, *, folder: Path, rounds: int, seconds: float
) -> Measured:
    """In a process of its own, so that its peak is that of these trials."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    arguments = (there, size, count, setting, str(folder / f"{size}-{count}"), rounds, seconds)
    process = context.Process(target=_enter, args=arguments)
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        raise RuntimeError(f"{size}, {count} trials: their process has died") from None
    finally:
        process.join()
    assert isinstance(found, Measured)
    return found


def _enter(pipe: Connection, size: str, count: int, setting: Setting, folder: str, rounds: int, seconds: float) -> None:
    torch.set_num_threads(1)
    pipe.send(measured(size, count, setting, folder=Path(folder), rounds=rounds, seconds=seconds))


def measured(size: str, count: int, setting: Setting, *, folder: Path, rounds: int, seconds: float) -> Measured:
    """Ends after `rounds`, or before the next one would take longer than until `seconds` have passed."""
    where = torch.device(setting.device)
    dataset = dataset_of(SIZES[size], setting.model, folder)
    load_kernels(where, setting.precision)
    before = forget_peak()
    group = group_of(SIZES[size], count, dataset, setting)
    for _ in range(2):  # kernels are chosen, optimizers get their state
        _together(group)
    peak = torch.cuda.max_memory_allocated(where) if where.type == "cuda" else resident("VmHWM") - before
    _in_turn(group)
    began, longest = time.monotonic(), 0.0
    together: list[Seconds] = []
    in_turn: list[Seconds] = []
    for number in range(rounds):
        started = time.monotonic()
        if number and started - began + longest > seconds:
            break
        ways = [(_together, together), (_in_turn, in_turn)]
        for way, times in ways if number % 2 else reversed(ways):
            times.append(_timed(way, group, where))
        longest = max(longest, time.monotonic() - started)
    return Measured(size=size, trials=count, together=tuple(together), in_turn=tuple(in_turn), peak_bytes=int(peak))


def _together(group: CoTraining) -> None:
    if diverged := step_together(group.base, group.members):
        raise next(iter(diverged.values()))


def _in_turn(group: CoTraining) -> None:
    for trainer in group.members:
        with group.alone(trainer.model):
            trainer.step()


def _timed(way: Callable[[CoTraining], None], group: CoTraining, device: torch.device) -> Seconds:
    began, began_cpu = time.perf_counter(), time.process_time()
    way(group)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(clock=time.perf_counter() - began, cpu=time.process_time() - began_cpu)
