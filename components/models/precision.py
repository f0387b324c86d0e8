"""The precision at which a model computes: one context for training, evaluation and generation."""

from __future__ import annotations

import torch
from torch import Tensor


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Returns a context in which matrices are multiplied at this precision, whatever the dtype of the weights.

    Training, evaluation, probes and generation all use it. So a kernel for 16 bits only (flash attention) never gets
    float32, and a model computes as it was trained. The context holds for one thread.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def computed_in(tensor: Tensor) -> torch.dtype:
    """Returns the dtype in which autocast multiplies such a tensor here; its own where there is none.

    For operations that autocast does not know by name.
    """
    device = tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensor.dtype


def scores_dtype(precision: str) -> torch.dtype:
    """Returns the dtype of attention scores inside that context. A wider one would widen all that it is added to."""
    return torch.bfloat16 if precision == "bf16" else torch.float32
