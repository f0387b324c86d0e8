"""Converts a Batch to arguments of a Hugging Face causal LM."""

from __future__ import annotations

from torch import Tensor

from components.data.batch import Batch
from components.experiment.spec import FLASH_ATTENTION


def model_inputs(batch: Batch, attention: str) -> dict[str, Tensor | None]:
    """Returns input_ids and position_ids without a mask: transformers makes a causal mask with a block for each restart.

    transformers knows the attention of each layer (e.g. sliding windows), which a mask given here would override. All
    padding has position 0, so each padding token is a sequence of its own, and no other token attends to it.

    Flash attention detects restarts in a single row only, so its batch is reshaped to one row: [1, B x T].
    """
    token_ids, position_ids = batch.token_ids_BT, batch.position_ids_BT
    if attention == FLASH_ATTENTION:
        token_ids, position_ids = token_ids.reshape(1, -1), position_ids.reshape(1, -1)
    return {"input_ids": token_ids, "position_ids": position_ids, "attention_mask": None}
