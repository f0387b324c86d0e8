"""transformers' own Trainer over the same model and rows, in turn with the product's: the speed that others have."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from experiments.benchmarks.gpu_kit.speed_bench import STANDS_STILL, Step, Trial
from experiments.benchmarks.gpu_kit.speed_peak import synchronize
from experiments.benchmarks.gpu_kit.speed_rows import MICRO_BATCHES, as_hugging_face_has_them, pad


def run_in_turn(trial: Trial) -> None:
    """Makes one step of transformers' Trainer, one of the product's, and so on, over the same rows.

    Both share the optimizer (torch's fused AdamW), so that no model needs a second one's memory.
    """
    settings = trial.bench.settings
    arguments = TrainingArguments(
        output_dir=str(settings.scratch / "hugging-face"),
        per_device_train_batch_size=trial.rows.per_pass,
        gradient_accumulation_steps=MICRO_BATCHES,
        max_steps=len(trial.steps),
        learning_rate=STANDS_STILL.learning_rate,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=STANDS_STILL.max_grad_norm,
        bf16=True,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not settings.on_gpu,
    )
    _use_one_gpu(arguments)
    rows = [row for step in trial.steps for row in step]
    theirs = _Recording(
        model=trial.bench.model,
        args=arguments,
        train_dataset=as_hugging_face_has_them(trial.store, rows, packing=trial.rows.packing),
        data_collator=pad,
        optimizers=(trial.trainer.optimizer, None),
    )
    theirs.remove_callback(PrinterCallback)
    theirs.add_callback(_InTurn(trial, theirs))
    theirs.record_norms()
    try:
        theirs.train()
    finally:
        theirs.accelerator.unwrap_model(trial.bench.model, keep_fp32_wrapper=False)


class _Recording(Trainer):
    """Keeps the losses and norms of the step that it is at, on the device."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.losses: list[torch.Tensor] = []
        self.norms: list[torch.Tensor] = []

    def training_step(self, model: nn.Module, *arguments: Any, **named: Any) -> torch.Tensor:
        with _as_peft_is(model):
            loss = super().training_step(model, *arguments, **named)
        self.losses.append(loss.detach())
        return loss

    def record_norms(self) -> None:
        clip = self.accelerator.clip_grad_norm_

        def recorded(*arguments: Any, **named: Any) -> Any:
            norm = clip(*arguments, **named)
            self.norms.append(norm)
            return norm

        self.accelerator.clip_grad_norm_ = recorded


class _InTurn(TrainerCallback):
    """Ends each step of transformers' Trainer with one of the product's. Its step begins where that has ended."""

    def __init__(self, trial: Trial, theirs: _Recording) -> None:
        self.trial, self.theirs, self.device = trial, theirs, trial.bench.settings.device
        self.began = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        self._begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        synchronize(self.device)
        seconds = time.perf_counter() - self.began
        loss, norm = float(sum(self.theirs.losses)), float(self.theirs.norms[-1])
        self.theirs.losses.clear()
        self.theirs.norms.clear()
        self.trial.theirs.steps.append(Step(loss=loss, grad_norm=norm, seconds=seconds))
        self.trial.step()
        if self.trial.must_end:
            control.should_training_stop = True
        self._begin()

    def _begin(self) -> None:
        synchronize(self.device)
        self.began = time.perf_counter()


@contextlib.contextmanager
def _as_peft_is(model: nn.Module) -> Iterator[None]:
    """Inside, adapters copy their inputs, which is peft's default; components/models/adapters.py spares it."""
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    kept = [layer.cast_input_dtype_enabled for layer in layers]
    for layer in layers:
        layer.cast_input_dtype_enabled = True
    try:
        yield
    finally:
        for layer, copies in zip(layers, kept, strict=True):
            layer.cast_input_dtype_enabled = copies


def _use_one_gpu(arguments: TrainingArguments) -> None:
    """transformers would spread the rows over all GPUs of a machine by DataParallel."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
