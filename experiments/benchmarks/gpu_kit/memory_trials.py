"""The trials whose memory is planned and then measured."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from components.data.prepare import PreparedDataset
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec, TrialSpec
from components.planning.dry_run import dry_run_step
from components.planning.memory import MemoryPlan, WorkerGroup, memory_plan
from components.planning.workload import workload
from components.storage.open_folder import folder_at
from components.training.evaluate import evaluate
from components.training.training_data import TrainingData
from experiments.benchmarks.gpu_kit.cases import release_memory
from experiments.benchmarks.gpu_kit.meters import Meter
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of
from experiments.benchmarks.gpu_kit.trials import RandomRunner, trial_spec

METHODS = {"LoRA": LoraMethod(rank=16), "QLoRA": LoraMethod(rank=16, quantize="nf4"), "full": FullMethod()}
TINY_PART = 8  # rows of tiny shapes have this part of the tokens
CONVERSATIONS = 4  # in a row. A row of only one takes less than is planned: it needs no mask, and a plan counts on one
STEPS = 2  # the first makes the optimizer's state, which the second computes beside


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCase:
    """Packed rows; a step has one micro-batch of so many, or two if it accumulates."""

    shape: str
    method: str
    tokens: int
    rows: int = 1
    accumulates: bool = False
    checkpointing: bool = False

    @property
    def spec(self) -> TrialSpec:
        return trial_spec(
            METHODS[self.method],
            rows=self.rows * (1 + self.accumulates),
            micro_rows=self.rows,
            packing=True,
            gradient_checkpointing=self.checkpointing,
        )

    def tokens_in_row(self, settings: Settings) -> int:
        return self.tokens // TINY_PART if settings.tiny else self.tokens

    def name(self, settings: Settings) -> str:
        size = f"{'2 x ' if self.accumulates else ''}{self.rows} x {self.tokens_in_row(settings):,} tokens"
        return f"{self.shape}, {self.method}, {size}{', checkpointing' if self.checkpointing else ''}"

    def folder(self, settings: Settings) -> Path:
        return settings.scratch / self.name(settings).replace(", ", "_").replace(" ", "")

    def write_rows(self, settings: Settings) -> None:
        """Writes a step's rows to train on, and conversations of a whole row and of half of one to evaluate."""
        tokens = self.tokens_in_row(settings)
        random_dataset(
            self.folder(settings),
            config_of(self.shape, settings).vocab_size,
            train=[tokens // CONVERSATIONS] * (CONVERSATIONS * self.spec.batch.rows_per_step),
            evaluate=[tokens, tokens // 2],
            target_every=1,  # as a plan counts on
        )

    def dataset(self, settings: Settings) -> PreparedDataset:
        return PreparedDataset.open(folder_at(self.folder(settings)))


def plan_of(case: MemoryCase, settings: Settings) -> MemoryPlan:
    """What `plan.py` computes for such a trial on one GPU. Needs no GPU."""
    dataset = case.dataset(settings)
    work = workload(dataset.train, dataset.eval, case.spec, max_tokens=case.tokens_in_row(settings), workers=1)
    dry_run = dry_run_step(
        config_of(case.shape, settings), ModelSpec(path="random"), case.spec, work.batch, evaluated=work.evaluated
    )
    return memory_plan(dry_run, case.spec, WorkerGroup())


@contextlib.contextmanager
def planned(cases: Sequence[MemoryCase], settings: Settings) -> Iterator[Callable[[MemoryCase], MemoryPlan]]:
    """Inside, returns the plan of each case.

    A dry run of a real shape takes seconds of the CPU, so processes of their own make them while the device works.
    """
    if settings.tiny:
        yield lambda case: plan_of(case, settings)
        return
    pool = ProcessPoolExecutor(
        max(1, min(8, (os.cpu_count() or 1) // 2)),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=torch.set_num_threads,
        initargs=(1,),
    )
    try:
        futures = {case: pool.submit(plan_of, case, settings) for case in cases}
        yield lambda case: futures[case].result()
    finally:
        pool.shutdown(cancel_futures=True)


class Runners:
    """A runner for each shape, one at a time, so that the trials of a shape use its base one after another."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._shape, self._runner = "", None

    def of(self, case: MemoryCase) -> RandomRunner:
        if self._runner is None or self._shape != case.shape:
            self.drop()
            self._shape = case.shape
            self._runner = RandomRunner(
                config_of(case.shape, self.settings),
                case.dataset(self.settings),
                self.settings.scratch / "checkpoints",
                device=self.settings.device,
                max_tokens=case.tokens_in_row(self.settings),
            )
        return self._runner

    def drop(self) -> None:
        self._runner = None
        release_memory()


def run_trial(case: MemoryCase, runner: RandomRunner, settings: Settings, meter: Meter) -> None:
    """Takes a trial's first steps and evaluates. Afterwards the meter's peak is that of steps and evaluation."""
    tokens = case.tokens_in_row(settings)
    runner.data = TrainingData(dataset=case.dataset(settings), max_tokens=tokens, pad_token_id=0)
    with meter:
        runner.start("memory", case.spec)
        release_memory()  # what the allocator keeps of the load is not the trial's
        meter.reset()
        run = runner.running
        run.scored.train()
        for _ in range(STEPS):
            run.step()
        evaluate(run.scored, run.eval_store, run.workers, max_tokens=tokens, rows_per_batch=case.rows, pad_token_id=0)
