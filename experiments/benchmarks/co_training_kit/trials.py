"""The trials that are measured: their sizes, and how they come onto one base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig

from components.data.prepare import PreparedDataset
from components.experiment.spec import Dtype, LoraMethod, ModelSpec, OptimizerSpec, ScheduleSpec, TrialSpec
from components.models.attention_backend import attention_of
from components.models.base.load_base import load_base_model, resolve_model
from components.models.base.reference import BaseReference
from components.models.shared_base import SharedBase
from components.training.co_training import CoTraining
from components.training.loss import ScoredModel
from components.training.trainer import Trainer
from components.training.training_data import TrainingData
from components.training.workers import OneWorker
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.trials import trial_spec

RANKS = (4, 8, 16, 32)
STEPS = 200  # that the data are enough for in an epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of one trial's step: rows of one conversation each, of so many tokens, all in one micro-batch."""

    rows: int
    tokens: int

    @property
    def tokens_per_step(self) -> int:
        return self.rows * self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The base, and how and where it computes."""

    model: str
    device: str = "cpu"
    precision: Dtype = "bf16"


SIZES = {"small": Size(rows=2, tokens=128), "large": Size(rows=4, tokens=256)}


def spec_of(number: int, size: Size, setting: Setting) -> TrialSpec:
    """Trials of several ranks and learning rates; every second one has dropout."""
    return trial_spec(
        LoraMethod(rank=RANKS[number % len(RANKS)], dropout=0.05 * (number % 2)),
        rows=size.rows,
        micro_rows=size.rows,
        packing=True,
        optimizer=OptimizerSpec(learning_rate=1e-4 * (1 + number)),
        schedule=ScheduleSpec(name="constant", warmup_fraction=0.0),
        seed=number,
        precision=setting.precision,
    )


def dataset_of(size: Size, model: str, folder: Path) -> PreparedDataset:
    """Conversations of random tokens, which fill a row each."""
    config = AutoConfig.from_pretrained(resolve_model(ModelSpec(path=model)), trust_remote_code=False)
    lengths = [size.tokens] * (size.rows * STEPS)
    return random_dataset(folder, config.vocab_size, train=lengths, evaluate=[9])


def group_of(size: Size, count: int, dataset: PreparedDataset, setting: Setting) -> CoTraining:
    """So many trials, all of whom have joined."""
    spec, device = ModelSpec(path=setting.model).for_trial(spec_of(0, size, setting)), torch.device(setting.device)
    base = load_base_model(spec, device=device)
    base.config.use_cache = False
    group, worker = CoTraining(SharedBase(base)), OneWorker(device)
    data = TrainingData(dataset=dataset, max_tokens=size.tokens, pad_token_id=0)
    reference = BaseReference(model=spec, digest="not asked for", chat_format="auto")
    for number in range(count):
        trial = spec_of(number, size, setting)
        trained = group.add(trial.method, trial.seed)  # type: ignore[arg-type]
        with group.alone(trained):
            scored = ScoredModel(trained, precision=trial.precision, attention=attention_of(base), device=device)
            scored.keep_apart_if_it_can()
            trainer = Trainer(trial, scored, data, worker, reference)
        group.join(trainer)
    return group
