"""Sessions over a tiny real model and a few prepared conversations, and what is asked of their trials."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import PreparedDataset, prepare
from components.experiment.spec import (
    BatchSpec,
    BudgetSpec,
    DataSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    OptimizerSpec,
    TrialSpec,
)
from components.models.base.reference import BaseReference
from components.models.digest import model_digest
from components.records.events import Extension
from components.storage.open_folder import folder_at
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl

FULL = TrialSpec(
    method=FullMethod(),
    optimizer=OptimizerSpec(learning_rate=1e-2),
    batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=4),
    budget=BudgetSpec(epochs=3.0, evaluations=3),
    precision="fp32",
)
LORA = FULL.model_copy(update={"method": LoraMethod(rank=4, alpha=8.0, dropout=0.1)})
MAX_TOKENS = 128


def prepared_toy(folder: Path):
    """(model directory, prepared data directory, pad token id): a tiny real model and a few prepared conversations."""
    model = folder / "model"
    tiny_model_directory(model)
    write_messages_jsonl(folder / "conversations.jsonl", toy_conversations(25, seed=0))
    data = DataSpec(train=str(folder / "conversations.jsonl"), eval_fraction=0.15, max_tokens=MAX_TOKENS)
    dataset = prepare(data, model_path=model, chat_format="auto", storage=folder_at(folder))
    chat_format = load_chat_format(load_tokenizer(model), "auto")
    return model, dataset.directory, chat_format.pad_token_id


def session(toy, checkpoints, workers=None, *, training=None, **of_the_model):
    """`training` are further fields of TrainingData; `of_the_model` are those of ModelSpec."""
    model, prepared, pad_token_id = toy
    torch.set_num_threads(1)
    dataset = PreparedDataset.open(prepared)
    data = TrainingData(dataset=dataset, max_tokens=MAX_TOKENS, pad_token_id=pad_token_id, **(training or {}))
    spec = ModelSpec(path=str(model), **of_the_model)
    base = BaseReference(model=spec, digest=model_digest(model), chat_format="auto")
    return TrialRunner(spec, data, workers or OneWorker(), base, folder_at(checkpoints))


@dataclass
class Signals:
    """The signals of a trial; by default nothing interrupts it."""

    preempted: Callable[[], bool] = lambda: False
    stop_requested: Callable[[], bool] = lambda: False
    extensions: Sequence[Extension] = ()


def reports(of, spec, trial_id="trial"):
    of.start(trial_id, spec)
    progress = [of.advance()]
    while not progress[-1].done:
        progress.append(of.advance())
    return progress


def curve(progress):
    return [step.loss for report in progress for step in report.steps] + [report.eval_loss for report in progress]


def weights(of):
    return {name: parameter.detach().clone() for name, parameter in of.running.model.named_parameters()}
