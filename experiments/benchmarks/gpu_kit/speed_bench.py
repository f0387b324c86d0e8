"""One model and method on the device, and the product's own Trainer over it, step by step."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from torch import nn

from components.data.sampler import PackedRow
from components.experiment.spec import FullMethod, LoraMethod, ModelSpec, OptimizerSpec, ScheduleSpec, TrialSpec
from components.models.adapters import attach_lora
from components.models.base.reference import BaseReference
from components.models.modality_towers import train_what_text_reaches
from components.planning.dry_run import MicroBatch
from components.training.data_parallel import set_gradient_checkpointing
from components.training.loss import ScoredModel
from components.training.trainer import Trainer
from components.training.training_data import TrainingData
from components.training.workers import OneWorker
from experiments.benchmarks.gpu_kit.sampled_plan import sampled_plan
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import config_of, random_model
from experiments.benchmarks.gpu_kit.speed_peak import model_flops, synchronize
from experiments.benchmarks.gpu_kit.speed_rows import MICRO_BATCHES, Rows
from experiments.benchmarks.gpu_kit.trials import trial_spec

WARM_UP = 2  # steps: kernels are chosen, the allocator grows, the head is looked at
RESERVE = 2.0  # seconds to leave for what comes after the last step
# No weight changes in any digit, so the losses of all steps can be compared. The work of a step does not depend on it.
STANDS_STILL = OptimizerSpec(learning_rate=1e-20)
RANK = 16
METHODS = {"LoRA": LoraMethod(rank=RANK), "full": FullMethod()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """`loss` in nats per target, `grad_norm` before clipping, `seconds` from its first row to the end of its update."""

    loss: float
    grad_norm: float
    seconds: float


@dataclass(slots=True)
class Measured:
    """The steps of one way to train, warm-up included. `tokens`, `flops`: of each step's rows, in the same order."""

    tokens: list[int]
    flops: list[float]
    steps: list[Step] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Padding is not counted."""
        return self._median(self.tokens)

    @property
    def flops_per_second(self) -> float:
        return self._median(self.flops)

    def _median(self, amounts: list[int] | list[float]) -> float:
        pairs = list(zip(amounts, self.steps, strict=False))[WARM_UP:]
        return median(amount / step.seconds for amount, step in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is trained: a shape of shapes.py, a method of METHODS."""

    shape: str
    method: str
    attention: str = "sdpa"

    def __str__(self) -> str:
        return f"{self.method} of {self.shape}"

    def spec(self, rows: Rows, *, checkpointing: bool) -> TrialSpec:
        return trial_spec(
            METHODS[self.method],
            rows=rows.batch.rows_per_step,
            micro_rows=rows.batch.rows_per_micro_batch,
            packing=rows.packing,
            optimizer=STANDS_STILL,
            schedule=ScheduleSpec(name="constant", warmup_fraction=0.0),
            gradient_checkpointing=checkpointing,
        )

    def planned_bytes(self, rows: Rows, settings: Settings, *, checkpointing: bool) -> float:
        """What the product's plan says, without the clean copy that only a slot keeps."""
        batch = MicroBatch(
            rows=rows.per_pass,
            tokens=rows.tokens_per_pass // rows.per_pass,
            targets=max(1, rows.tokens_per_pass // 2),
            accumulates=MICRO_BATCHES > 1,
            packed=rows.packing,
        )
        plan = sampled_plan(
            config_of(self.shape, settings),
            ModelSpec(path="random", attention=self.attention),
            self.spec(rows, checkpointing=checkpointing),
            batch,
            evaluated=MicroBatch(rows=1, tokens=8, targets=4),
            on_gpu=settings.on_gpu,
        )
        return plan.total - plan.parts["clean copy"]


class Bench:
    """Holds the model. `prepare` begins a new trial on it; nothing of the trial before changes its work."""

    def __init__(self, subject: Subject, settings: Settings, *, checkpointing: bool = False) -> None:
        self.subject, self.settings, self.checkpointing = subject, settings, checkpointing
        self.config, self.workers = config_of(subject.shape, settings), OneWorker(settings.device)
        method = METHODS[subject.method]
        spec = TrialSpec(method=method, precision="bf16")
        dtype = ModelSpec(path="random").dtype_of(spec)
        self.base = random_model(self.config, settings.device, dtype=dtype, attention=subject.attention)
        if isinstance(method, LoraMethod):
            self.model: nn.Module = attach_lora(self.base, method)
        else:
            train_what_text_reaches(self.base)
            self.model = self.base
        set_gradient_checkpointing(
            self.model.train(), spec.model_copy(update={"gradient_checkpointing": checkpointing})
        )

    def prepare(self, rows: Rows, steps: int) -> Trial:
        """Args:
        steps: with the warm-up.
        """
        folder = self.settings.scratch / f"{self.subject.shape} {rows.name} {time.monotonic_ns()}"
        return Trial(self, rows, steps, folder)


class Trial:
    """The product's Trainer with the rows of its steps."""

    def __init__(self, bench: Bench, rows: Rows, steps: int, folder: Path) -> None:
        self.bench, self.rows, self.device = bench, rows, bench.settings.device
        spec = bench.subject.spec(rows, checkpointing=bench.checkpointing)
        dataset = rows.dataset(folder, bench.config.vocab_size, steps)
        self.scored = ScoredModel(
            bench.model, precision=spec.precision, attention=bench.base.config._attn_implementation, device=self.device
        )
        self.trainer = Trainer(
            spec,
            self.scored,
            TrainingData(dataset=dataset, max_tokens=rows.max_tokens, pad_token_id=0),
            bench.workers,
            BaseReference(model=ModelSpec(path="random"), digest="random", chat_format="auto"),
        )
        self.scored.keep_apart_if_it_can()
        self.scored.look_at_head()  # before transformers' Trainer wraps the model's forward pass
        self.scored.train()
        self.store = dataset.train
        self.steps: list[list[PackedRow]] = rows.steps(dataset.train, spec.seed, steps)
        lengths = [[int(self.store.lengths[index]) for row in step for index in row] for step in self.steps]
        self.ours = self.measured(lengths)
        self.theirs = self.measured(lengths)

    def measured(self, lengths: list[list[int]]) -> Measured:
        flops = [model_flops(self.bench.model, self.bench.config, step) for step in lengths]
        return Measured(tokens=[sum(step) for step in lengths], flops=flops)

    def step(self) -> Step:
        """Makes the next step of the product's Trainer, and waits for the device."""
        synchronize(self.device)
        began = time.perf_counter()
        self.trainer.step()
        synchronize(self.device)
        made = self.trainer.interval.steps[-1]
        step = Step(loss=made.loss, grad_norm=made.grad_norm, seconds=time.perf_counter() - began)
        self.ours.steps.append(step)
        return step

    @property
    def must_end(self) -> bool:
        """Whether there is a step after the warm-up, and no time for more."""
        return len(self.ours.steps) > WARM_UP and self.bench.settings.seconds_left() < RESERVE

    def run_alone(self) -> None:
        while len(self.ours.steps) < len(self.steps) and not self.must_end:
            self.step()
