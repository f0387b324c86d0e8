"""The norm of a model's gradient, as exact on a CPU as on a GPU."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm


def gradient_norm(gradients: Iterable[Tensor]) -> Tensor:
    """Returns the norm of all gradients as one vector: a scalar on their device, and nothing is waited for.

    A CPU adds up a tensor's squares in float32, one after the other: of 30 million it loses 0.2 % of the norm (torch 2.13;
    a GPU adds in a tree, and loses nothing). So there the norm of a matrix is that of the norms of its rows.
    """
    parts = [_rows_norms(gradient) if gradient.device.type == "cpu" else gradient for gradient in gradients]
    return get_total_norm(parts)


def _rows_norms(gradient: Tensor) -> Tensor:
    return torch.linalg.vector_norm(gradient, dim=-1) if gradient.dim() > 1 else gradient
