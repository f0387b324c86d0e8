"""Real trials of a tiny model, one a method, for tests of what becomes of them."""

import json
import os
from pathlib import Path

import torch

from components.conversations.chat_formats import load_chat_format
from components.conversations.tokenizers.load_tokenizer import load_tokenizer
from components.data.prepare import prepare
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
from components.models.load_trained import package
from components.records.events import TrialEnded, TrialProgressed, TrialStarted
from components.storage.open_folder import folder_at
from components.training.evaluate import evaluate
from components.training.loss import ScoredModel
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker
from tests.support.toy import tiny_model_directory, toy_conversations, write_messages_jsonl

MAX_TOKENS = 128
METHODS = {
    "lora": LoraMethod(rank=4, alpha=8.0),
    "full": FullMethod(),
    "nf4": LoraMethod(rank=4, alpha=8.0, quantize="nf4"),
    "int8": LoraMethod(rank=4, alpha=8.0, quantize="int8"),
}
EPOCHS = {"lora": 2.0, "full": 6.0, "nf4": 2.0, "int8": 2.0}  # so that full is clearly the best


class Trials:
    """A tiny base model, prepared data, and one trained checkpoint a method, made when it is first asked for."""

    def __init__(self, folder, *, least_rows=0, tokenizer=None):
        torch.set_num_threads(1)
        self.folder = folder
        self.model = folder / "model"
        tiny_model_directory(self.model, least_rows=least_rows, tokenizer=tokenizer)
        write_messages_jsonl(folder / "conversations.jsonl", toy_conversations(60, seed=0))
        data = DataSpec(train=str(folder / "conversations.jsonl"), eval_fraction=0.6, max_tokens=MAX_TOKENS)
        self.dataset = prepare(data, model_path=self.model, chat_format="auto", storage=folder_at(folder))
        self.chat_format = load_chat_format(load_tokenizer(self.model), "auto")
        reference = BaseReference(
            model=ModelSpec(path=str(self.model)), digest=model_digest(self.model), chat_format="auto"
        )
        training = TrainingData(dataset=self.dataset, max_tokens=MAX_TOKENS, pad_token_id=self.chat_format.pad_token_id)
        self.session = TrialRunner(reference.model, training, OneWorker(), reference, folder_at(folder / "checkpoints"))
        self._records = {}

    def records(self, name, trial_id=None):
        """What a search would have journaled of the trial."""
        if name not in self._records:
            spec = TrialSpec(
                method=METHODS[name],
                optimizer=OptimizerSpec(learning_rate=1e-2),
                batch=BatchSpec(rows_per_step=4, rows_per_micro_batch=4),
                budget=BudgetSpec(epochs=EPOCHS[name], evaluations=1),
                precision="fp32",
            )
            self.session.start(name, spec)
            started = TrialStarted(trial_id=name, number=1, branch=name, spec=spec, workers=1, varied={}, time=1.0)
            progressed = TrialProgressed(trial_id=name, progress=self.session.advance(), slot="slot", time=2.0)
            self._records[name] = started, progressed, TrialEnded(trial_id=name, state="completed", time=3.0)
        return [record.model_copy(update={"trial_id": trial_id or name}) for record in self._records[name]]

    def trained(self, name):
        """(checkpoint, its eval loss in training)."""
        _, progressed, _ = self.records(name)
        return Path(progressed.progress.checkpoint), progressed.progress.eval_loss

    def packaged(self, name, directory):
        package(self.trained(name)[0], directory)
        return directory

    def loss_of(self, loaded):
        scored = ScoredModel(loaded.model, precision=loaded.precision, attention=loaded.attention, device=loaded.device)
        pad_token_id = loaded.chat_format.pad_token_id
        return evaluate(
            scored,
            self.dataset.eval,
            OneWorker(),
            max_tokens=MAX_TOKENS,
            rows_per_batch=4,
            pad_token_id=pad_token_id,
        )[0]


def cut_short(folder):
    (file,) = folder.rglob("*.safetensors")
    os.truncate(file, file.stat().st_size // 2)


def package_without_base(trials, tmp_path, name):
    """The package of a trial; its base model is no longer where the package says."""
    directory = trials.packaged(name, tmp_path / "package")
    reference = json.loads((directory / "base.json").read_text())
    reference["model"]["path"] = str(tmp_path / "gone")
    (directory / "base.json").write_text(json.dumps(reference))
    return directory
