"""Causal attention of one conversation after the other on a CPU, by torch's own kernels.

In 16 bits the kernel of the backward pass is slow for a short conversation: of 64 tokens it takes 4 times what float32
takes, of 128 tokens 3 times, and from 512 on as long (torch 2.13). So a short one's is computed in float32. What is kept for
it stays in 16 bits, and keys and values are kept once for all heads that share them.

N tokens of all conversations one after the other, n of one, H heads, K of them with keys and values, D numbers a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor

SHORT = 384  # tokens: below, the backward pass is computed in float32
forward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
backward_kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attend_within(
    query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, lengths: Sequence[int], scaling: float | None
) -> Tensor:
    """Returns [N, H, D]. `scaling` of the scores is 1 / sqrt(D) by default. H is a multiple of K."""
    applied = _Within.apply(query_NHD, key_NKD, value_NKD, lengths, scaling)  # type: ignore[no-untyped-call]
    return cast(Tensor, applied)


class _Within(torch.autograd.Function):
    """One conversation at a time, so that what is copied for the kernels is never larger than it."""

    @staticmethod
    def forward(
        ctx: Any, query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, lengths: Sequence[int], scaling: float | None
    ) -> Tensor:
        found_NHD, log_sums = torch.empty_like(query_NHD), []
        shared = query_NHD.shape[1] // key_NKD.shape[1]
        for place in _places(lengths):
            query, key, value = (_heads(heads[place]) for heads in (query_NHD, key_NKD, value_NKD))
            found, log_sum = forward_kernel(
                query, _for_each(key, shared), _for_each(value, shared), 0.0, True, scale=scaling
            )
            found_NHD[place] = found[0].transpose(0, 1)
            log_sums.append(log_sum)
        ctx.save_for_backward(query_NHD, key_NKD, value_NKD, found_NHD, *log_sums)
        ctx.lengths, ctx.scaling, ctx.shared = lengths, scaling, shared
        return found_NHD

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NHD,) = gradients
        query_NHD, key_NKD, value_NKD, found_NHD, *log_sums = ctx.saved_tensors
        slopes = [torch.empty_like(heads) for heads in (query_NHD, key_NKD, value_NKD)]
        for place, length, log_sum in zip(_places(ctx.lengths), ctx.lengths, log_sums, strict=True):
            dtype = torch.float32 if length < SHORT else query_NHD.dtype
            gradient, query, key, value, found = (
                _heads(heads[place]).to(dtype) for heads in (gradient_NHD, query_NHD, key_NKD, value_NKD, found_NHD)
            )
            key, value = _for_each(key, ctx.shared), _for_each(value, ctx.shared)
            of_query, of_key, of_value = backward_kernel(
                gradient, query, key, value, found, log_sum, 0.0, True, scale=ctx.scaling
            )
            parts = of_query, _added(of_key, ctx.shared), _added(of_value, ctx.shared)
            for slope_NHD, part in zip(slopes, parts, strict=True):
                slope_NHD[place] = part[0].transpose(0, 1)
        return *slopes, None, None


def _places(lengths: Sequence[int]) -> Iterator[slice]:
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def _heads(part_nHD: Tensor) -> Tensor:
    """Returns [1, H, n, D], as the kernels take them."""
    return part_nHD.transpose(0, 1)[None]


def _for_each(heads_1KnD: Tensor, shared: int) -> Tensor:
    """Returns [1, H, n, D]: each key or value for all heads that share it."""
    return heads_1KnD if shared == 1 else heads_1KnD.repeat_interleave(shared, dim=1)


def _added(slope_1HnD: Tensor, shared: int) -> Tensor:
    """Returns [1, K, n, D]: the sum over the heads that share a key or value."""
    if shared == 1:
        return slope_1HnD
    _, _, length, size = slope_1HnD.shape
    return slope_1HnD.view(1, -1, shared, length, size).sum(2)
