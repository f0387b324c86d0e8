"""A Batch as arguments of a Hugging Face causal LM."""

from __future__ import annotations

from torch import Tensor

from components.data.batch import Batch
from components.experiment.spec import FLASH_ATTENTION


def model_inputs(batch: Batch, attention: str) -> dict[str, Tensor | None]:
    """input_ids and position_ids, and no mask: transformers makes a causal, block-diagonal one where positions restart.

    It knows each layer's own kind of attention (sliding windows, for one), which a mask of ours would overrule. Padding
    stands at position 0 everywhere, so each padded token is a sequence of its own and nobody attends to it.

    Flash attention takes that road for a single row only, so its batch is laid out as one: [1, B x T].
    """
    token_ids, position_ids = batch.token_ids_BT, batch.position_ids_BT
    if attention == FLASH_ATTENTION:
        token_ids, position_ids = token_ids.reshape(1, -1), position_ids.reshape(1, -1)
    return {"input_ids": token_ids, "position_ids": position_ids, "attention_mask": None}
