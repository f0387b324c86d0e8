"""ChatGLM3: in its authors' layout, converted, trained from its directory, saved, loaded again, merged, and talked to."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from components.data.prepare import PreparedDataset
from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import (
    BatchSpec,
    BudgetSpec,
    LoraMethod,
    ModelSpec,
    OptimizerSpec,
    ScheduleSpec,
    TrialSpec,
)
from components.models.base.load_base import config_of
from components.models.base.reference import BaseReference
from components.models.chatglm.convert import convert_once
from components.models.digest import model_digest
from components.planning.workload import workload
from components.records.events import Progress
from components.storage.open_folder import folder_at
from components.storage.size import GB
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker
from experiments.benchmarks.gpu_kit.cases import Case, release_memory, run_cases
from experiments.benchmarks.gpu_kit.chatglm3_files import Written, write_data, write_model
from experiments.benchmarks.gpu_kit.chatglm3_use import converted_as_written, use_what_was_trained
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if, skipped
from experiments.benchmarks.gpu_kit.sampled_plan import sampled_plan
from experiments.benchmarks.gpu_kit.settings import Settings

STEPS = 20
TOKENS, TOKENS_TINY = 2048, 512  # of the one row that every step trains on
LEARNING_RATE = 2e-3
# Nats by which the loss of that row falls at least: adapters alone learn within a few steps which tokens are frequent.
FALLS = 0.5
METHODS = {"LoRA": LoraMethod(rank=16), "QLoRA": LoraMethod(rank=16, quantize="nf4")}
# Seconds on one H100 beside moving weights: training and generation with what they compile and choose.
TRAINS, TALKS = 8.0, 8.0
QLORA_LOADS = 3  # quantized to train and again to talk, whole to be merged


def run(settings: Settings) -> Iterator[Check]:
    with _own_cache(settings.scratch / "cache"):
        yield from run_cases(_ChatGLM3(settings).cases(), settings)


class _ChatGLM3:
    """The cases, and what the later ones take from the earlier."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.tokens = TOKENS_TINY if settings.tiny else TOKENS
        self.written: Written | None = None
        self.dataset: PreparedDataset | None = None
        self.runner: TrialRunner | None = None
        self.loading = 0.0  # seconds

    def cases(self) -> Iterator[Case]:
        yield "written in its authors' layout", self.write, self._seconds(15.0)
        if self.written is None or self.dataset is None:
            return
        yield "converted", self.convert, self._seconds(10.0)
        for name, method in METHODS.items():
            loads = 1 if method.quantize is None else QLORA_LOADS
            needed = self._seconds(TRAINS + TALKS) + loads * self.loading
            yield name, partial(self.train_and_use, name, method), needed

    def write(self) -> Iterator[Check]:
        written = write_model(self.settings)
        self.dataset = write_data(written.directory, self.settings, self.tokens)
        self.written = written
        yield measured("written in its authors' layout, float16, random", written.sentence(), seconds=written.seconds)

    def convert(self) -> Iterator[Check]:
        """From the original layout to Glm's, as the first worker of a machine does, and into memory."""
        began = time.perf_counter()
        assert convert_once(self._directory, torch.bfloat16) is not None, "the disk has no room for the conversion"
        converted = time.perf_counter()
        self.runner = self._make_runner()
        self.runner.warm_up(BaseVariant("bf16"))
        base = self.runner.warm.load(BaseVariant("bf16"))
        self.loading = time.perf_counter() - converted
        seen = f"converted in {converted - began:.1f} s, loaded in {self.loading:.1f} s"
        yield measured("converted once, digests included, and loaded on the device", seen)
        yield converted_as_written(self._directory, base)

    def train_and_use(self, name: str, method: LoraMethod) -> Iterator[Check]:
        if method.quantize is not None and find_spec("bitsandbytes") is None:
            yield skipped(name, "no bitsandbytes here")
            return
        spec, progress, checks = self._train(name, method)
        yield from checks
        release_memory()
        yield from use_what_was_trained(
            name,
            Path(str(progress.checkpoint)),
            progress,
            self._dataset,
            self.settings,
            spec=spec,
            max_tokens=self.tokens,
        )

    def _train(self, name: str, method: LoraMethod) -> tuple[TrialSpec, Progress, list[Check]]:
        spec = TrialSpec(
            method=method,
            optimizer=OptimizerSpec(learning_rate=LEARNING_RATE),
            schedule=ScheduleSpec(name="constant", warmup_fraction=0.0),
            batch=BatchSpec(rows_per_step=1, rows_per_micro_batch=1),
            budget=BudgetSpec(epochs=float(STEPS), evaluations=1),  # an epoch is one row
            precision="bf16",
        )
        assert self.runner is not None, "the model could not be converted"
        if self.settings.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        self.runner.start(name, spec)
        progress = self.runner.advance()
        assert isinstance(progress, Progress)
        return spec, progress, [learned(name, progress, self.tokens), self._memory(name, spec)]

    def _memory(self, name: str, spec: TrialSpec) -> Check:
        """The peak since the base was loaded, against what the plan says that torch requests."""
        asked = f"{name}: peak memory against the plan"
        if not self.settings.on_gpu:
            return measured(asked, "the part memory holds the plan against a ledger of tensors on a CPU")
        seen = torch.cuda.max_memory_allocated()
        work = workload(self._dataset.train, self._dataset.eval, spec, max_tokens=self.tokens, workers=1)
        plan = sampled_plan(
            config_of(self._directory),
            ModelSpec(path=str(self._directory)),
            spec,
            work.batch,
            evaluated=work.evaluated,
            on_gpu=True,
        )
        error = plan.tensors / seen - 1
        return measured(
            asked, f"{seen / GB:.2f} GB, planned {plan.tensors / GB:.2f} GB ({error:+.1%})", peak=seen, error=error
        )

    def _make_runner(self) -> TrialRunner:
        model = ModelSpec(path=str(self._directory))
        return TrialRunner(
            model,
            TrainingData(dataset=self._dataset, max_tokens=self.tokens, pad_token_id=0),
            OneWorker(self.settings.device),
            BaseReference(model=model, digest=model_digest(self._directory), chat_format="auto"),
            folder_at(self.settings.scratch / "checkpoints"),
        )

    @property
    def _directory(self) -> Path:
        assert self.written is not None
        return self.written.directory

    @property
    def _dataset(self) -> PreparedDataset:
        assert self.dataset is not None
        return self.dataset

    def _seconds(self, on_h100: float) -> float:
        return 0.5 if self.settings.tiny else on_h100


def learned(name: str, progress: Progress, tokens: int) -> Check:
    losses = [step.loss for step in progress.steps]
    holds = len(losses) == STEPS and all(map(math.isfinite, losses)) and losses[0] - losses[-1] >= FALLS
    return passed_if(
        holds,
        f"{name}: {STEPS} steps on one row of {tokens:,} tokens, from the directory; the loss falls by {FALLS} nats at least",
        f"{losses[0]:.2f} to {losses[-1]:.2f} in {len(losses)} steps, {progress.tokens_per_second:,.0f} tokens/s",
        first=losses[0],
        last=losses[-1],
        tokens_per_second=progress.tokens_per_second,
    )


@contextlib.contextmanager
def _own_cache(folder: Path) -> Iterator[None]:
    """Inside, conversions go to a folder of the part's own, which is deleted with it."""
    usual = os.environ.get("TURNWISE_CACHE")
    os.environ["TURNWISE_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["TURNWISE_CACHE"]
        if usual is not None:
            os.environ["TURNWISE_CACHE"] = usual
