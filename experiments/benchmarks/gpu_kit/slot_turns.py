"""The trials that follow each other in a slot, and the base's digest."""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from components.experiment.base_precisions import BaseVariant, base_variant
from components.experiment.spec import BudgetSpec, Dtype, FullMethod, LoraMethod, TrialSpec
from components.records.events import InterimCheckpoint
from components.training.evaluate import evaluate
from components.training.trial_runner import TrialRunner
from experiments.benchmarks.gpu_kit.trials import trial_spec

ROWS, ALL_ROWS = 2, 8  # of a step, and of the data
STEPS = 2
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
CUDA_BLOCK = 512  # bytes; torch's allocator gives out whole ones
CHUNK = 2**24  # elements of a weight whose checksum is computed at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A trial of two steps and an evaluation."""

    name: str
    method: LoraMethod | FullMethod
    dtype: Dtype | None = None
    checkpointing: bool = False
    rows: int = ROWS

    @property
    def spec(self) -> TrialSpec:
        return trial_spec(
            self.method,
            rows=self.rows,
            micro_rows=self.rows,
            packing=True,
            budget=BudgetSpec(epochs=STEPS * ROWS / ALL_ROWS, evaluations=1),
            dtype=self.dtype,
            gradient_checkpointing=self.checkpointing,
        )

    @property
    def possible(self) -> bool:
        quantized = isinstance(self.method, LoraMethod) and self.method.quantize is not None
        return not quantized or importlib.util.find_spec("bitsandbytes") is not None


LORA = Turn(name="LoRA", method=LoraMethod(rank=8))
FULL = Turn(name="full", method=FullMethod())
# With the same base and with another one, and two trials a second time: nothing of those between may be seen in them.
TURNS = (
    LORA,
    Turn(name="LoRA, dropout, checkpointing", method=LoraMethod(rank=64, dropout=0.1), checkpointing=True),
    Turn(name="DoRA", method=LoraMethod(rank=8, dora=True)),
    LORA,
    FULL,
    Turn(name="full, checkpointing", method=FullMethod(), checkpointing=True),
    Turn(name="LoRA on full's base", method=LoraMethod(rank=8), dtype="fp32"),
    FULL,
    Turn(name="QLoRA", method=LoraMethod(rank=8, quantize="nf4")),
    Turn(name="QLoRA, dropout", method=LoraMethod(rank=64, dropout=0.1, quantize="nf4")),
)
TOO_LARGE = Turn(name="LoRA of too many rows", method=LoraMethod(rank=8), rows=ALL_ROWS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """Losses of the steps, then that of the evaluation. `first_step` is when the first step ended, in epoch seconds."""

    losses: tuple[float, ...]
    first_step: float


def train(runner: TrialRunner, turn: Turn, *, saves: bool) -> Trained:
    """Trains the turn's trial, which has been started, to its end.

    Args:
        saves: with the checkpoint that a slot writes; the one of a large model takes longer than all the rest.
    """
    run = runner.running
    if saves:
        progress = runner.advance()
        assert not isinstance(progress, InterimCheckpoint)
        steps, loss = progress.steps, progress.eval_loss
    else:
        run.scored.train()
        for _ in range(STEPS):
            run.step()
        loss, _ = evaluate(
            run.scored,
            run.eval_store,
            run.workers,
            max_tokens=runner.data.max_tokens,
            rows_per_batch=turn.rows,
            pad_token_id=runner.data.pad_token_id,
        )
        steps = tuple(run.interval.steps)
    return Trained(losses=(*(step.loss for step in steps), loss), first_step=steps[0].time)


def variant_of(runner: TrialRunner, turn: Turn) -> BaseVariant:
    return base_variant(runner.model, turn.spec)


def own_bytes(runner: TrialRunner) -> int:
    """What the running trial has beside the base before its first step: its adapters, or the clean copy of the weights."""
    block = CUDA_BLOCK if runner.workers.device.type == "cuda" else 1
    trained = (weight.nbytes for weight in runner.running.model.parameters() if weight.requires_grad)
    return sum(-(-size // block) * block for size in trained)


def digest_of(base: nn.Module) -> str:
    """The same for equal weights, with or without adapters on them. Any other weight gives another digest."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        if "lora_" not in name:
            name = name.replace(".base_layer.", ".")
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {_checksum(tensor)}\n".encode())
    return hashed.hexdigest()


def _checksum(tensor: Tensor) -> int:
    """The sum of (2 x position + 1) x bits, modulo 2^64, on the tensor's device: no single changed bit is lost in it."""
    bits = tensor.detach().contiguous().view(-1).view(BITS[tensor.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for start in range(0, len(bits), CHUNK):
        chunk = bits[start : start + CHUNK].to(torch.int64)
        first = 2 * start + 1
        total += (chunk * torch.arange(first, first + 2 * len(chunk), 2, device=bits.device)).sum()
    return int(total)
