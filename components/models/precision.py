"""The precision at which a model computes: one context for training, evaluation and generation."""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from components.experiment.spec import Dtype

# Of x86. Without them a product in bf16 takes 8 (forward) to 30 times (backward) as long as in float32.
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Returns a context in which matrices are multiplied at this precision, whatever the dtype of the weights.

    Training, evaluation, probes and generation all use it. So a kernel for 16 bits only (flash attention) never gets
    float32, and a model computes as it was trained. The context holds for one thread. Raises ValueError for `auto`, which
    is decided before anything is computed (experiment/precisions.py).
    """
    if precision not in ("fp32", "bf16"):
        raise ValueError(f"precision={precision}: must be fp32 or bf16")
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


def fast_on_cpu() -> Dtype:
    """Returns bf16 if this machine's CPU has instructions for products in it, else fp32."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        known = torch.cpu.get_capabilities()
        return "bf16" if any(known.get(name, False) for name in BF16_INSTRUCTIONS) else "fp32"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def fast_on_gpu() -> Dtype:
    """Returns fp32 if this machine has a GPU that only imitates bf16, as those before 2020 do. Without a GPU here: bf16."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "fp32"
    return "bf16"
