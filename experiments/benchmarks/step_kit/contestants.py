"""Who takes part, and the process that each of them runs in."""

from __future__ import annotations

import ctypes
import gc
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from components.experiment.spec import Dtype
from components.planning.calibrate import load_kernels, resident
from experiments.benchmarks.step_kit.turns import Turns
from experiments.benchmarks.step_kit.works import Work

OURS, YARDSTICK = "turnwise", "product"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """`place` is a module of this kit and its function; `needs` are packages.

    `methods` and `precisions` are those of the works in which it takes part.
    """

    name: str
    words: str
    place: tuple[str, str]
    needs: tuple[str, ...] = ()
    methods: tuple[str, ...] = ("LoRA", "full")
    precisions: tuple[Dtype, ...] = ("bf16", "fp32")

    def takes_part(self, work: Work) -> bool:
        return work.method in self.methods and work.precision in self.precisions

    @property
    def missing(self) -> str:
        """The package that this Python lacks; "" if none."""
        return next((package for package in self.needs if find_spec(package) is None), "")


CONTESTANTS = {
    each.name: each
    for each in (
        Contestant(name=OURS, words="Turnwise's Trainer", place=("ours", "run")),
        Contestant(name="trl", words="TRL's SFTTrainer", place=("hugging_face", "run_trl"), needs=("trl", "datasets")),
        Contestant(
            name="transformers",
            words="transformers' Trainer",
            place=("hugging_face", "run_transformers"),
            needs=("accelerate",),
        ),
        Contestant(name="hand", words="by hand, all in one dtype", place=("hand", "run_in_one_dtype")),
        Contestant(
            name="hand-fp32",
            words="by hand, fp32 weights under bf16",
            place=("hand", "run_mixed"),
            methods=("full",),
            precisions=("bf16",),
        ),
    )
}
_THE_YARDSTICK = Contestant(name=YARDSTICK, words="one matrix product", place=("yardstick", "run"))


def contestant(name: str) -> Contestant:
    return _THE_YARDSTICK if name == YARDSTICK else CONTESTANTS[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """peak_bytes: of resident memory, beyond what the process had before it loaded its model."""

    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    reason: str


def enter(pipe: Connection, name: str, work: Work) -> None:
    """The process of a contestant, from its start to its end."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # what the libraries deprecate in each other
    try:
        module, function = contestant(name).place
        for package in contestant(name).needs:
            import_module(package)
        run: Callable[[Work, Turns], None] = getattr(
            import_module(f"experiments.benchmarks.step_kit.{module}"), function
        )
        load_kernels(torch.device("cpu"), work.precision)
        before = forget_peak()
        run(work, Turns(pipe))
        pipe.send(Ended(peak_bytes=resident("VmHWM") - before))
    except Exception as error:
        pipe.send(Failed(reason=f"{type(error).__name__}: {error}"))
        raise


def forget_peak() -> int:
    """Resets the process's peak (proc(5), clear_refs). Returns what it holds now: its libraries."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return resident("VmRSS")
