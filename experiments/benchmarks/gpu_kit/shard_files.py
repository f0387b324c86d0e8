"""A small model in files and rows of data, for processes that load the same: a sharded base is mapped from its files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from components.data.prepare import PreparedDataset
from components.experiment.spec import ModelSpec
from components.models.base.reference import BaseReference
from components.storage.open_folder import folder_at
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import Workers
from experiments.benchmarks.gpu_kit.children import Child
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import few_layers, random_model

COLLECTIVE_SECONDS = 30.0  # a collective that takes longer raises


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardFiles:
    name: str
    model: Path
    data: Path
    max_tokens: int

    def runner(self, workers: Workers, checkpoints: Path) -> TrialRunner:
        """The TrialRunner of a slot's worker, over these files."""
        model = ModelSpec(path=str(self.model))
        dataset = PreparedDataset.open(folder_at(self.data))
        data = TrainingData(dataset=dataset, max_tokens=self.max_tokens, pad_token_id=0)
        base = BaseReference(model=model, digest=self.name, chat_format="auto")
        return TrialRunner(model, data, workers, base, folder_at(checkpoints))


def write_files(name: str, settings: Settings) -> ShardFiles:
    """Writes a model of few layers, and rows of two conversations for two steps of four."""
    config, max_tokens = few_layers(name, settings), 64 if settings.tiny else 128
    directory = settings.scratch / f"shard-{name}"
    random_model(config, torch.device("cpu")).save_pretrained(directory / "model")
    lengths = [max_tokens * 5 // 8, max_tokens * 3 // 8] * 8
    random_dataset(directory / "data", config.vocab_size, train=lengths, evaluate=[8])
    return ShardFiles(name=name, model=directory / "model", data=directory / "data", max_tokens=max_tokens)


@contextlib.contextmanager
def process_group(backend: str, child: Child) -> Iterator[None]:
    """Inside, the processes of `child` are torch's default group; they find each other by a file."""
    join_group(backend, child)
    try:
        yield
    finally:
        dist.destroy_process_group()


def join_group(backend: str, child: Child) -> None:
    if backend == "nccl":
        torch.cuda.set_device(0)
    dist.init_process_group(
        backend,
        init_method=f"file://{child.folder}/rendezvous",
        rank=child.rank,
        world_size=child.count,
        timeout=timedelta(seconds=COLLECTIVE_SECONDS),
    )
