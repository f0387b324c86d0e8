"""Flash attention on a CPU: transformers' own way to it, and at its end kernels that compute here and refuse what flash's do.

What they refuse, and their signatures, are those of the package flash-attn 2 (flash_attn_interface.py, flash_api.cpp).
"""

import math

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel, modeling_flash_attention_utils

from components.models import attention_backend

WIDEST_HEAD = 256


def install(monkeypatch) -> None:
    """Also for the code that a registered version brings: it asks transformers itself."""
    parts = modeling_flash_attention_utils
    kernels = flash_attn_func, flash_attn_varlen_func, None, parts._pad_input, parts._unpad_input
    monkeypatch.setattr(parts, "_loaded_implementation", None)
    monkeypatch.setattr(parts, "_lazy_imports", lambda *_, **__: kernels)
    monkeypatch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *_, **__: True)
    monkeypatch.setattr(attention_backend, "is_flash_attn_2_available", lambda **_: True)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda **_: True)


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """[rows, tokens, heads, width]"""
    whole_q, whole_k = (torch.tensor([0, part.shape[1]]) for part in (q, k))
    hidden = _hidden(whole_q, whole_k, causal, window_size)
    return _attended(q, k, v, hidden, scale=softmax_scale, cap=softcap, dropout=dropout_p)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """[tokens, heads, width], sequence after sequence; cu_seqlens are where they begin, and the end of the last."""
    _check_lengths(q, cu_seqlens_q, int(max_seqlen_q))
    _check_lengths(k, cu_seqlens_k, int(max_seqlen_k))
    hidden = _hidden(cu_seqlens_q, cu_seqlens_k, causal, window_size)
    return _attended(q[None], k[None], v[None], hidden, scale=softmax_scale, cap=softcap, dropout=dropout_p)[0]


def _hidden(ends_q: Tensor, ends_k: Tensor, causal: bool, window: tuple[int, int]) -> Tensor:
    """[queries, keys]: True where a query does not see a key. The last query of a sequence stands at its last key."""
    (sequence_q, from_last_q), (sequence_k, from_last_k) = _places(ends_q), _places(ends_k)
    hidden = sequence_q[:, None] != sequence_k
    distance = from_last_q[:, None] - from_last_k  # above 0 where the key is ahead of its query
    left, right = window[0], 0 if causal else window[1]
    if right >= 0:
        hidden |= distance > right
    if left >= 0:
        hidden |= distance < -left
    return hidden


def _places(ends: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token: its sequence, and how many tokens of that follow it."""
    lengths = ends.diff()
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    return sequence, ends[1:][sequence] - 1 - torch.arange(len(sequence))


def _attended(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, *, scale: float | None, cap: float, dropout: float
) -> Tensor:
    """[rows, tokens, heads, width]. Inside it computes in float32."""
    _check(query, key, value)
    groups = query.shape[2] // key.shape[2]
    grouped = (query, key.repeat_interleave(groups, 2), value.repeat_interleave(groups, 2))
    queries, keys, values = (part.float().transpose(1, 2) for part in grouped)
    scores = queries @ keys.transpose(2, 3) * (scale or 1 / math.sqrt(query.shape[3]))
    if cap:
        scores = cap * torch.tanh(scores / cap)
    shares = nn.functional.dropout(scores.masked_fill(hidden, -torch.inf).softmax(-1), dropout)
    return (shares @ values).transpose(1, 2).to(query.dtype)


def _check(query: Tensor, key: Tensor, value: Tensor) -> None:
    if query.dtype not in (torch.float16, torch.bfloat16):
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    for name, part in (("key", key), ("value", value)):
        if part.dtype != query.dtype:
            raise RuntimeError(f"query and {name} must have the same dtype")
        if part.stride(-1) != 1:
            raise RuntimeError("Input tensor must have contiguous last dimension")
    if query.shape[2] % key.shape[2]:
        raise RuntimeError("Number of heads in key/value must divide number of heads in query")
    if query.shape[3] > WIDEST_HEAD:
        raise RuntimeError("FlashAttention forward only supports head dimension at most 256")


def _check_lengths(tokens: Tensor, ends: Tensor, longest: int) -> None:
    """The kernels trust these numbers: they would read beyond a tensor, or leave rows out."""
    if ends.dtype != torch.int32:
        raise RuntimeError("cu_seqlens must have dtype int32")
    if int(ends[0]) != 0 or int(ends[-1]) != len(tokens) or int(ends.diff().max()) > longest:
        raise AssertionError(
            f"sequences that end at {ends.tolist()}, the longest of {longest}, over {len(tokens)} tokens"
        )
