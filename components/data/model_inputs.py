"""Converts a Batch to arguments of a Hugging Face causal LM."""

from __future__ import annotations

import torch
from torch import Tensor

from components.data.attention_masks import MaskForm, Masks, additive, tree_masks
from components.data.batch import Batch
from components.experiment.spec import FLASH_ATTENTION

Inputs = dict[str, Tensor | Masks | None]


def model_inputs(
    batch: Batch, attention: str, form: MaskForm | None = None, dtype: torch.dtype = torch.float32
) -> Inputs:
    """Returns input_ids and position_ids, with masks only for trees.

    Without a mask transformers makes a causal one with a block for each restart. It knows the attention of each layer (e.g.
    sliding windows), which a mask given here would override. Nothing attends to padding: it comes behind the last
    conversation. A tree's positions do not say what a token sees, so its masks are made here.

    Positions without a restart are left to the model. Then causal kernels compute without any mask, which each layer would
    keep a copy of for the backward pass, and nobody looks for restarts, which a GPU would be waited for.

    Flash attention detects restarts in a single row only, so its batch is reshaped to one row: [1, B x T].

    Args:
        form: the masks that the model wants; needed for trees.
        dtype: of masks that are added to scores, as the eager attention takes them.
    """
    token_ids = batch.token_ids_BT
    position_ids = batch.position_ids_BT if batch.has_restarts else None
    if attention == FLASH_ATTENTION:
        if batch.subtree_ends_BT is not None:
            raise ValueError(
                f"{FLASH_ATTENTION} takes no masks, so it cannot see a tree's paths: lay out separate rows"
            )
        if len(token_ids) > 1:
            token_ids, position_ids = token_ids.reshape(1, -1), batch.position_ids_BT.reshape(1, -1)
    return {
        "input_ids": token_ids,
        "position_ids": position_ids,
        "attention_mask": _masks(batch, attention, form or MaskForm(), dtype),
    }


def _masks(batch: Batch, attention: str, form: MaskForm, dtype: torch.dtype) -> Masks | None:
    if batch.subtree_ends_BT is None:
        return None
    masks = tree_masks(batch.subtree_ends_BT, batch.position_ids_BT, form)
    return additive(masks, dtype) if attention == "eager" else masks
