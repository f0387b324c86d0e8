"""Attention masks of prefix trees: a token sees its own path, of which a layer may have a part only.

B rows, T tokens in a row. transformers takes a mask [B, 1, T, T] as it is, and a dict of them by the kind of layer where
the layers of a model see differently far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FULL, SLIDING, CHUNKED = "full_attention", "sliding_attention", "chunked_attention"
Masks = Tensor | dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How much of its path a token sees: its last `window` tokens, or those in its own chunk; with neither, all."""

    window: int | None = None
    chunk: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskForm:
    """The masks that a model wants: one for all of its layers, or one for each kind of layer, as its config names them."""

    of_all: Reach = Reach()
    by_layer_type: tuple[tuple[str, Reach], ...] = ()


def mask_form(config: Any) -> MaskForm:
    """Reads the form from a configuration of transformers; of a multimodal one, from that of its text."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None
    of_type = {SLIDING: Reach(window=window), CHUNKED: Reach(chunk=getattr(text, "attention_chunk_size", None))}
    layer_types = dict.fromkeys(getattr(text, "layer_types", None) or ())
    if not layer_types:
        return MaskForm(of_all=Reach(window=window))
    reaches = {name: of_type.get(name, Reach()) for name in layer_types}
    if len(set(reaches.values())) == 1:
        return MaskForm(of_all=next(iter(reaches.values())))
    return MaskForm(by_layer_type=tuple(sorted(reaches.items())))


def sees_whole_conversations(config: Any) -> bool:
    """Whether each layer, as far as its configuration says, sees all that comes before a token."""
    layer_types = set(getattr(config.get_text_config(), "layer_types", None) or ())
    return layer_types <= {FULL, SLIDING, CHUNKED} and mask_form(config) == MaskForm()


def tree_masks(subtree_ends_BT: Tensor, position_ids_BT: Tensor, form: MaskForm) -> Masks:
    """Returns boolean masks [B, 1, T, T]: whether token i sees token j. Every token sees itself."""
    path_BTT = _sees_path(subtree_ends_BT)
    if form.by_layer_type:
        return {name: _within(reach, path_BTT, position_ids_BT)[:, None] for name, reach in form.by_layer_type}
    return _within(form.of_all, path_BTT, position_ids_BT)[:, None]


def additive(masks: Masks, dtype: torch.dtype) -> Masks:
    """Returns what is added to scores: 0 where a token is seen, else the least number of the dtype."""
    if isinstance(masks, dict):
        return {name: _additive(mask, dtype) for name, mask in masks.items()}
    return _additive(masks, dtype)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def _sees_path(subtree_ends_BT: Tensor) -> Tensor:
    """[B, T, T]: j <= i < the end of j's subtree."""
    index_T = torch.arange(subtree_ends_BT.shape[1], device=subtree_ends_BT.device)
    query_T1 = index_T[:, None]
    return (index_T <= query_T1) & (query_T1 < subtree_ends_BT[:, None, :])


def _within(reach: Reach, path_BTT: Tensor, position_ids_BT: Tensor) -> Tensor:
    """Distances are those along the path: in the row other sequences lie between a token and its past."""
    query_BT1, key_B1T = position_ids_BT[:, :, None], position_ids_BT[:, None, :]
    if reach.window is not None:
        return path_BTT & (query_BT1 - reach.window < key_B1T)  # no difference of all pairs is kept
    if reach.chunk is not None:
        return path_BTT & (query_BT1 // reach.chunk == key_B1T // reach.chunk)
    return path_BTT
