"""Where the time of one of the product's own steps goes: by kind of work, and by operation and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.gpu_kit.speed_profile import GROUPS, by_group
from experiments.benchmarks.step_kit.ours import step, trainer_of
from experiments.benchmarks.step_kit.works import Work

WARM_UP, MEASURED = 2, 2  # steps
STEPS = WARM_UP + MEASURED
KINDS = {"casts and copies": r"copy|clone|contiguous", **GROUPS}  # the first that matches counts
REST = "outside torch's operations"
SHOWN = 25  # operations
SIZES = 90  # characters of an operation's shapes


def profiled(work: Work) -> str:
    """Two tables, as Markdown."""
    torch.set_num_threads(1)
    trainer = trainer_of(work)
    for number in range(WARM_UP):
        step(trainer, work, number)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for number in range(WARM_UP, STEPS):
            step(trainer, work, number)
    averages = [each for each in profiler.key_averages(group_by_input_shape=True) if each.self_cpu_time_total > 0]
    total = sum(each.self_cpu_time_total for each in averages)
    torch_own = [each for each in averages if each.key.startswith("aten::")]
    groups = by_group(((each.key, each.self_cpu_time_total) for each in torch_own), KINDS)
    groups[REST] = total - sum(groups.values())
    return "\n".join([*_groups(groups, total), "", *_operations(torch_own, total)])


def _groups(groups: dict[str, float], total: float) -> Iterator[str]:
    yield from ("| kind | of a step's CPU time |", "|---|---|")
    for name, spent in sorted(groups.items(), key=lambda one: -one[1]):
        yield f"| {name} | {spent / total:.1%} |"


def _operations(averages: list[Any], total: float) -> Iterator[str]:
    yield from ("| operation | calls a step | of the time | shapes |", "|---|---|---|---|")
    for each in sorted(averages, key=lambda one: -one.self_cpu_time_total)[:SHOWN]:
        shapes = str([shape for shape in each.input_shapes if shape])[:SIZES]
        share = each.self_cpu_time_total / total
        yield f"| {each.key.removeprefix('aten::')} | {each.count / MEASURED:g} | {share:.1%} | {shapes} |"
