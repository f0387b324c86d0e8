"""transformers' own Trainer, and TRL's."""

from __future__ import annotations

from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from experiments.benchmarks.gpu_kit.speed_bench import STANDS_STILL
from experiments.benchmarks.gpu_kit.speed_rows import pad
from experiments.benchmarks.step_kit.peer_models import base_dtype, peer_model, rows_of
from experiments.benchmarks.step_kit.turns import Turns
from experiments.benchmarks.step_kit.works import Work


def run_transformers(work: Work, turns: Turns) -> None:
    with TemporaryDirectory() as folder:
        trainer = _recording(Trainer)(
            model=peer_model(work, base_dtype(work)).trained,
            args=TrainingArguments(**_arguments(work, folder)),
            train_dataset=_rows(work),
            data_collator=pad,
        )
        _train(trainer, turns)


def run_trl(work: Work, turns: Turns) -> None:
    """Its loss is computed in chunks, by default. Rows come packed, as its own packing has no use for a given order."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from components.models.base.load_base import resolve_model

    rows = [{name: values.tolist() for name, values in row.items()} for row in _rows(work)]
    with TemporaryDirectory() as folder:
        trainer = _recording(SFTTrainer)(
            model=peer_model(work, base_dtype(work)).trained,
            args=SFTConfig(
                **_arguments(work, folder),
                max_length=None,
                gradient_checkpointing=False,
                dataset_kwargs={"skip_prepare_dataset": True},
            ),
            train_dataset=Dataset.from_list(rows),
            data_collator=_pad_lists,
            processing_class=AutoTokenizer.from_pretrained(resolve_model(work.base), trust_remote_code=False),
        )
        _train(trainer, turns)


def _arguments(work: Work, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "per_device_train_batch_size": work.batch.rows_per_micro_batch,
        "gradient_accumulation_steps": work.micro_batches_per_step,
        "max_steps": len(work.steps),
        "learning_rate": STANDS_STILL.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "max_grad_norm": STANDS_STILL.max_grad_norm,
        "bf16": work.precision == "bf16",
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def _rows(work: Work) -> list[dict[str, Tensor]]:
    return [row for step in rows_of(work) for rows in step for row in rows]


def _pad_lists(items: Sequence[dict[str, list[int]]]) -> dict[str, Any]:
    return pad([{name: torch.tensor(values) for name, values in item.items()} for item in items])


def _recording(trainer: type[Trainer]) -> type[Trainer]:
    """Its losses are kept, as it would only log them."""

    class Recording(trainer):  # type: ignore[valid-type, misc]
        def training_step(self, *arguments: Any, **named: Any) -> Tensor:
            loss: Tensor = super().training_step(*arguments, **named)
            self.losses.append(loss.detach())
            return loss

    return Recording


class _InTurns(TrainerCallback):
    def __init__(self, turns: Turns, losses: list[Tensor]) -> None:
        self.turns, self.losses = turns, losses

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self.turns.wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        control.should_training_stop = not self.turns.made(self.losses)
        self.losses.clear()


def _train(trainer: Any, turns: Turns) -> None:
    trainer.losses = []
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_InTurns(turns, trainer.losses))
    trainer.train()
