"""The cases of a part, one after the other: none keeps the next one from running."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterable, Iterator

import torch

from experiments.benchmarks.gpu_kit.checks import Check, failed, skipped
from experiments.benchmarks.gpu_kit.part_process import line_of
from experiments.benchmarks.gpu_kit.settings import Settings

# What is asked, what answers it, and how many seconds that may take at most.
Case = tuple[str, Callable[[], Iterable[Check]], float]


def run_cases(cases: Iterable[Case], settings: Settings) -> Iterator[Check]:
    """Yields the checks of each case. An error fails its own case; a case without enough time left is skipped."""
    gc.freeze()  # what libraries made when they were imported: looking through that takes longer than a small case
    try:
        for asked, answer, seconds in cases:
            yield from _answer(asked, answer, seconds, settings)
            release_memory()
    finally:
        gc.unfreeze()


def _answer(asked: str, answer: Callable[[], Iterable[Check]], seconds: float, settings: Settings) -> Iterator[Check]:
    left = settings.seconds_left()
    if left < seconds:
        yield skipped(asked, f"no time left: {left:.0f} s, and it may take {seconds:.0f}")
        return
    try:
        yield from answer()
    except Exception as error:  # noqa: BLE001 - the next case has to run, and the table says what ended this one
        traceback.print_exc()
        yield failed(asked, line_of(error))


def release_memory() -> None:
    """Frees what is no longer referred to: the hooks of models make cycles, and torch's allocator keeps what it had."""
    gc.collect()
    torch.cuda.empty_cache()  # without a GPU it does nothing
