"""The optimizer of a trial, and its learning rate as a function of the budget spent."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from components.errors import InputError
from components.experiment.spec import OptimizerSpec, ScheduleSpec


def make_optimizer(model: nn.Module, spec: OptimizerSpec, device: torch.device) -> torch.optim.Optimizer:
    """Returns an optimizer of the trained parameters. Vectors (norms, biases) have no weight decay.

    Raises:
        InputError: the spec names the 8-bit optimizer, but the device is not a CUDA device.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon, fused=True)
    if device.type != "cuda":
        raise InputError(
            f"optimizer.name={spec.name} keeps its state in CUDA unified memory, but this worker runs on {device.type};"
            " use optimizer.name=adamw, or give the method gpus_per_worker"
        )
    from bitsandbytes.optim import PagedAdamW8bit

    paged: torch.optim.Optimizer = PagedAdamW8bit(groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.epsilon)
    return paged


def learning_rate_factor(spec: ScheduleSpec, spent: float) -> float:
    """Returns the share of the peak learning rate when `spent` (0 to 1) of the budget has been used."""
    spent = min(spent, 1.0)
    if spent < spec.warmup_fraction:
        return spent / spec.warmup_fraction
    if spec.name == "constant" or spec.warmup_fraction >= 1.0:
        return 1.0
    decayed = (spent - spec.warmup_fraction) / (1.0 - spec.warmup_fraction)
    shape = 1.0 - decayed if spec.name == "linear" else (1.0 + math.cos(math.pi * decayed)) / 2
    return spec.final_fraction + (1.0 - spec.final_fraction) * shape


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Returns (name, parameter) of all that a trial trains; names are the model's own."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
