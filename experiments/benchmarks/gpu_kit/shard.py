"""Shard: the collectives of this device, sharded weights (FSDP2) of one process, and two processes on one device.

NCCL refuses two processes on one GPU, so they use gloo, which takes CUDA tensors, too. All rendezvous are files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from experiments.benchmarks.gpu_kit.checks import Check, skipped
from experiments.benchmarks.gpu_kit.children import Children, Work
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shard_files import write_files
from experiments.benchmarks.gpu_kit.shard_of_one import one_process
from experiments.benchmarks.gpu_kit.shard_of_two import NCCL_ASKED, nccl_of_two, two_processes

ONE, TWO = "one process with a group of its own", "two processes on one device"
# For a group of processes; on a GPU it takes 20, most of it imports. With less time than LEAST nothing is begun.
SECONDS, LEAST = 120.0, 20.0


def run(settings: Settings) -> Iterator[Check]:
    """All groups start at once: most of their time is imports."""
    left = settings.seconds_left()
    if left < LEAST:
        yield from (skipped(asked, f"no time left: {left:.0f} s") for asked in (ONE, TWO, NCCL_ASKED))
        return
    files = write_files("llama-1b", settings)
    with ExitStack() as stack:

        def start(work: Work, count: int) -> Children:
            seconds = min(SECONDS, settings.seconds_left())
            return stack.enter_context(Children(work, settings, files, count=count, settings=settings, seconds=seconds))

        one, two = start(one_process, 1), start(two_processes, 2)
        refused = start(nccl_of_two, 2) if settings.on_gpu else None
        yield from one.checks(ONE)
        yield from two.checks(TWO)
        yield from refused.checks(NCCL_ASKED) if refused else [skipped(NCCL_ASKED, "no GPU is used")]
