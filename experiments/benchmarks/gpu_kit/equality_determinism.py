"""Two runs of one trial: whether they are equal bit by bit, and what that costs where it has to be asked for.

A trial that lost a checkpoint is trained again up to it (TrialRunner.replay_to), and shall come out the same.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from components.experiment.spec import FullMethod, LoraMethod, OptimizerSpec
from components.training.optimizer import trained_parameters
from experiments.benchmarks.gpu_kit.cases import Case
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if
from experiments.benchmarks.gpu_kit.children import Child, Children
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import few_layers
from experiments.benchmarks.gpu_kit.trials import RandomRunner, trial_spec

METHODS: dict[str, LoraMethod | FullMethod] = {
    "LoRA": LoraMethod(rank=8, alpha=16.0, dropout=0.1),
    "full": FullMethod(),
}
ROWS_PER_STEP, STEPS = 4, 3
CHILD_SECONDS = 120.0  # a new process imports torch and transformers first
SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoRuns:
    """The losses of a trial's steps in nats, and the digest of its trained weights, twice; and the seconds of the second."""

    losses: tuple[tuple[float, ...], tuple[float, ...]]
    digests: tuple[str, str]
    seconds: float

    @property
    def equal(self) -> bool:
        return self.losses[0] == self.losses[1] and self.digests[0] == self.digests[1]

    def describe(self) -> str:
        if self.equal:
            return f"equal; {STEPS} steps took {self.seconds:.2f} s"
        apart = max(abs(one - other) for one, other in zip(*self.losses, strict=True))
        return f"not equal: losses up to {apart:.1e} nats apart; {STEPS} steps took {self.seconds:.2f} s"


def determinism_cases(settings: Settings) -> Iterator[Case]:
    yield "two runs of one trial", partial(_two_runs, settings), SECONDS


def _two_runs(settings: Settings) -> Iterator[Check]:
    plain = {}
    for method in METHODS:
        plain[method] = two_runs(method, settings)
        yield measured(f"{method}: two runs of {STEPS} steps in bf16, without any setting", plain[method].describe())
    asked = "two runs with deterministic algorithms"
    seconds = {method: runs.seconds for method, runs in plain.items()}
    limit = min(CHILD_SECONDS, settings.seconds_left())
    with Children(deterministic_runs, settings, seconds, count=1, settings=settings, seconds=limit) as children:
        yield from children.checks(asked)


def deterministic_runs(child: Child, settings: Settings, plain_seconds: dict[str, float]) -> Iterator[Check]:
    """In a process of its own, because cuBLAS reads its setting once."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=False)
    for method in METHODS:
        runs = two_runs(method, settings)
        asked = f"{method}: two runs with deterministic algorithms are equal bit by bit"
        yield passed_if(runs.equal, asked, runs.describe(), seconds=runs.seconds)
        ratio = runs.seconds / plain_seconds[method]
        yield measured(f"{method}: time with deterministic algorithms", f"{ratio:.2f} of that without", ratio=ratio)


def two_runs(method: str, settings: Settings) -> TwoRuns:
    """Trains twice, after a run that warms up kernels and memory."""
    tokens = 1024 if settings.on_gpu and not settings.tiny else 64
    config = few_layers("llama-1b", settings)
    lengths = [tokens * 5 // 8, tokens * 3 // 8] * (ROWS_PER_STEP * STEPS)
    scratch = Path(tempfile.mkdtemp(prefix=f"{method}-", dir=settings.scratch))
    dataset = random_dataset(scratch / "data", config.vocab_size, train=lengths, evaluate=[8])
    runner = RandomRunner(config, dataset, scratch, device=settings.device, max_tokens=tokens)
    _, first, second = (_run(runner, method) for _ in range(3))
    return TwoRuns(losses=(first[0], second[0]), digests=(first[1], second[1]), seconds=second[2])


def _run(runner: RandomRunner, method: str) -> tuple[tuple[float, ...], str, float]:
    optimizer = OptimizerSpec(learning_rate=1e-3)
    spec = trial_spec(METHODS[method], rows=ROWS_PER_STEP, micro_rows=2, packing=True, optimizer=optimizer)
    runner.start("trial", spec)
    progress = runner.running.advance()
    if progress is None or len(progress.steps) != STEPS:
        raise RuntimeError(f"the trial was to make {STEPS} steps: {progress}")
    losses = tuple(step.loss for step in progress.steps)
    digest = hashlib.sha256()
    for _, weight in trained_parameters(runner.running.model):
        digest.update(weight.detach().cpu().numpy().tobytes())
    return losses, digest.hexdigest(), progress.steps[-1].seconds
