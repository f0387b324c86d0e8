"""Attention over packed rows, conversation by conversation: no mask is made, and no score between two conversations.

transformers keeps packed conversations apart by a mask of all pairs of a row's tokens. Of a row with k conversations all but
a k-th of those pairs are masked, and so is half of what remains. Here each conversation is a causal attention of its own.

N tokens of all rows one after the other, S conversations (padding behind them counts as one), H heads, K of them with keys
and values, D numbers a head.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from components.models.cpu_attention import attend_within
from components.models.precision import computed_in

NAME = "turnwise_packed"  # transformers makes no masks for an attention that it does not know
LARGEST_HEAD = 256  # that torch's flash attention has kernels for
HALF = (torch.float16, torch.bfloat16)

# Not a context variable: a backward pass recomputes layers in threads of its own, where that would not be seen.
_present: _Conversations | None = None


@contextlib.contextmanager
def conversations_apart(model: nn.Module, lengths: Sequence[int], device: torch.device) -> Iterator[None]:
    """Inside, a model that attends by sdpa does so within each conversation, in forward and backward passes.

    For layers that see all of a conversation: windows and chunks are kept by masks alone. One model at a time in a process.

    Args:
        lengths: of the conversations, in tokens, as Batch.lengths has them. Without any, each row is one conversation.
    """
    global _present
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    before = _present, config._attn_implementation
    _present, config._attn_implementation = _Conversations(lengths, device) if lengths else None, NAME
    try:
        yield
    finally:
        _present, config._attn_implementation = before


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query [B, H, T, D], key and value [B, K, T, D]; returns [B, T, H, D].

    A model may pass a mask of its own, or attend to something else than its own tokens: that is sdpa's, as usual.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = attention_mask is None and others.get("position_bias") is None and query.shape[2] == key.shape[2]
    if _present is None or not (plain and causal):
        by_sdpa: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **others
        )
        return by_sdpa
    batch, _, tokens, _ = query.shape
    if batch * tokens != sum(_present.lengths):
        raise ValueError(f"{batch} rows of {tokens} tokens, of which {sum(_present.lengths)} are in conversations")
    dtype = computed_in(query)
    query_NHD, key_NKD, value_NKD = (_flat(heads, dtype) for heads in (query, key, value))
    if not dropout and _has_kernel(query_NHD, value_NKD):
        found_NHD = _by_kernel(query_NHD, key_NKD, value_NKD, _present, scaling)
    elif not dropout and query.device.type == "cpu" and query.shape[-1] == value.shape[-1]:
        found_NHD = attend_within(query_NHD, key_NKD, value_NKD, _present.lengths, scaling)
    else:
        found_NHD = _one_by_one(query_NHD, key_NKD, value_NKD, _present, scaling, dropout)
    return found_NHD.view(batch, tokens, *found_NHD.shape[1:]), None


AttentionInterface.register(NAME, attend)


class _Conversations:
    """Of one batch. `starts`: int32 [S + 1] on the device, from 0 to N; made when a kernel first asks for it."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self.longest, self._device = tuple(lengths), max(lengths), device

    @cached_property
    def starts(self) -> Tensor:
        return torch.tensor([0, *itertools.accumulate(self.lengths)], dtype=torch.int32, device=self._device)


def suits_kernel(config: Any) -> bool:
    """Whether a model's heads are such that torch computes conversations of several lengths at once, on CUDA."""
    text = config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    of_one_size = getattr(text, "kv_lora_rank", None) is None  # else keys have parts that values lack
    dropout = getattr(text, "attention_dropout", None) or getattr(text, "attn_pdrop", None)
    return of_one_size and not dropout and _has_kernel_of(size)


def _has_kernel_of(size: int) -> bool:
    """For heads of so many numbers."""
    return size <= LARGEST_HEAD and size % 8 == 0


def _flat(heads_BHTD: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns [N, H, D], each head's numbers side by side, as the kernels take them without asking."""
    flat_NHD = heads_BHTD.transpose(1, 2).flatten(0, 1).to(dtype)
    return flat_NHD if flat_NHD.stride(-1) == 1 else flat_NHD.contiguous()


def _has_kernel(query_NHD: Tensor, value_NKD: Tensor) -> bool:
    """Whether torch computes conversations of several lengths at once: on CUDA, in 16 bits."""
    size = query_NHD.shape[-1]
    fits = size == value_NKD.shape[-1] and _has_kernel_of(size)
    return query_NHD.is_cuda and query_NHD.dtype in HALF and fits


def _by_kernel(
    query_NHD: Tensor, key_NKD: Tensor, value_NKD: Tensor, among: _Conversations, scaling: float | None
) -> Tensor:
    found_NHD = varlen_attn(
        query_NHD, key_NKD, value_NKD, among.starts, among.starts, among.longest, among.longest,
        scale=scaling, window_size=(-1, 0), enable_gqa=query_NHD.shape[1] != key_NKD.shape[1],
    )  # fmt: skip
    assert isinstance(found_NHD, Tensor)  # it returns more only if it is asked to
    return found_NHD


def _one_by_one(
    query_NHD: Tensor,
    key_NKD: Tensor,
    value_NKD: Tensor,
    among: _Conversations,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    parts = zip(*(torch.split(heads, list(among.lengths)) for heads in (query_NHD, key_NKD, value_NKD)), strict=True)
    grouped = query_NHD.shape[1] != key_NKD.shape[1]
    found = []
    for part in parts:
        query, key, value = (heads.transpose(0, 1)[None] for heads in part)
        found_1HnD = F.scaled_dot_product_attention(
            query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=grouped
        )
        found.append(found_1HnD[0].transpose(0, 1))
    return torch.cat(found)
