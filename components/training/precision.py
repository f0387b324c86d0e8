"""At which precision a model computes: one context for all that it is asked to do."""

from __future__ import annotations

import torch


def computing(precision: str, device: torch.device) -> torch.autocast:
    """Inside, matrices are multiplied at this precision, whatever the weights are kept in.

    Training, evaluation, probes and generation all go through it: a kernel that knows 16 bits only (flash attention) is
    then never given float32, and a model answers as it was trained to. A thread has to enter it by itself.
    """
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
