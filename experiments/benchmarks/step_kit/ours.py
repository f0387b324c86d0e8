"""The product's own Trainer."""

from __future__ import annotations

import torch
from torch import nn

from components.experiment.spec import LoraMethod
from components.models.adapters import attach_lora
from components.models.attention_backend import attention_of
from components.models.base.load_base import load_base_model
from components.models.base.reference import BaseReference
from components.models.modality_towers import train_what_text_reaches
from components.training.loss import ScoredModel
from components.training.trainer import Trainer
from components.training.training_data import TrainingData
from components.training.workers import OneWorker
from experiments.benchmarks.step_kit.adapters import settle
from experiments.benchmarks.step_kit.turns import Turns
from experiments.benchmarks.step_kit.works import Work


def run(work: Work, turns: Turns) -> None:
    trainer = trainer_of(work)
    for number in turns:
        step(trainer, work, number)
        turns.made([trainer.interval.steps[-1].loss])


def trainer_of(work: Work) -> Trainer:
    """As a slot's worker makes it, but without the clean copy of a full trial's weights, which later trials need."""
    base = load_base_model(work.base)
    base.config.use_cache = False
    model: nn.Module = base
    if isinstance(work.method_spec, LoraMethod):
        model = settle(attach_lora(base, work.method_spec))
    else:
        train_what_text_reaches(base)
    worker = OneWorker(torch.device("cpu"))
    scored = ScoredModel(
        model.train(), precision=work.spec.precision, attention=attention_of(base), device=worker.device
    )
    data = TrainingData(dataset=work.dataset(), max_tokens=work.max_tokens, pad_token_id=work.pad_token_id)
    reference = BaseReference(model=work.base, digest="not asked for", chat_format="auto")
    trainer = Trainer(work.spec, scored, data, worker, reference)
    scored.keep_apart_if_it_can()
    scored.train()
    return trainer


def step(trainer: Trainer, work: Work, number: int) -> None:
    trainer.position = work.steps[number]
    trainer.step()
