"""The project's own TrialRunner over a model of random weights: what a slot's worker runs, without files and without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from components.data.prepare import PreparedDataset
from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import (
    BatchSpec,
    BudgetSpec,
    FullMethod,
    LoraMethod,
    ModelSpec,
    OptimizerSpec,
    TrialSpec,
)
from components.models.base.reference import BaseReference
from components.storage.open_folder import folder_at
from components.training.training_data import TrainingData
from components.training.trial_runner import TrialRunner
from components.training.workers import OneWorker, Workers
from experiments.benchmarks.gpu_kit.shapes import random_model


def trial_spec(
    method: LoraMethod | FullMethod, *, rows: int, micro_rows: int, packing: bool, **others: Any
) -> TrialSpec:
    """A trial of one epoch and one report, in bf16; `others` are fields of TrialSpec."""
    usual = {
        "budget": BudgetSpec(epochs=1.0, evaluations=1),
        "optimizer": OptimizerSpec(learning_rate=1e-4),
        "precision": "bf16",
    }
    batch = BatchSpec(rows_per_step=rows, rows_per_micro_batch=micro_rows, packing=packing)
    return TrialSpec(method=method, batch=batch, **{**usual, **others})


class RandomRunner(TrialRunner):
    """Its base is made on the device instead of being loaded. ddp only: a sharded base is mapped from files."""

    def __init__(
        self,
        config: PreTrainedConfig,
        dataset: PreparedDataset,
        checkpoints: Path,
        *,
        device: torch.device,
        max_tokens: int,
        attention: str = "sdpa",
        workers: Workers | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        """
        Args:
            weights: the state of a model of this configuration, which the base gets; perhaps from another device.
        """
        model = ModelSpec(path="random", attention=attention)
        data = TrainingData(dataset=dataset, max_tokens=max_tokens, pad_token_id=0)
        base = BaseReference(model=model, digest="random", chat_format="auto")
        super().__init__(model, data, workers or OneWorker(device), base, folder_at(checkpoints))
        self.config, self.weights = config, weights

    def _load(self, kind: BaseVariant) -> PreTrainedModel:
        return random_model(
            self.config,
            self.workers.device,
            dtype=kind.dtype,
            attention=self.model.attention,
            quantize=kind.quantize,
            weights=self.weights,
        )
