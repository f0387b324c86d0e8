"""Equality: a step on this device does what the CPU's does, packed rows stay apart, and two runs are one.

Without a GPU the "device" is the CPU as well, and every comparison is with another way of computing the same (other kernels,
other micro-batches, other threads), so that no check compares a thing with itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from experiments.benchmarks.gpu_kit.cases import run_cases
from experiments.benchmarks.gpu_kit.checks import Check
from experiments.benchmarks.gpu_kit.equality_determinism import determinism_cases
from experiments.benchmarks.gpu_kit.equality_isolation import flex_cases, isolation_cases
from experiments.benchmarks.gpu_kit.equality_qlora import qlora_cases
from experiments.benchmarks.gpu_kit.equality_steps import step_cases
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.steps import full_fp32


def run(settings: Settings) -> Iterator[Check]:
    cases = chain(
        step_cases(settings),
        isolation_cases(settings),
        qlora_cases(settings),
        determinism_cases(settings),
        flex_cases(settings),
    )
    with full_fp32():
        yield from run_cases(cases, settings)
