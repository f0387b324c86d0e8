"""A batch that is generated in stretches, between which the rows leave whose replies have ended.

A batch goes on to its longest reply. What is computed for the others until then is for nothing, and on a CPU most of the time
of a step is that of its rows. A row leaves by its place in the cache of keys and values; models with another kind of cache
keep their rows to the end.

B rows, T tokens in each so far. These letters are used in this file only.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from components.models.load_trained import LoadedModel
from components.models.precision import computing
from components.models.token_id_check import rows_of
from components.scoring.reply import generation_config

# Tokens. To begin again costs some milliseconds, and a row that has ended waits for half of a stretch on average.
STRETCH = 8
# Their subclasses hold more than keys and values: states that batch_select_indices does not know.
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def generate_rows(
    loaded: LoadedModel, input_ids_BT: Tensor, mask_BT: Tensor, *, max_new_tokens: int, rows_leave: bool
) -> list[list[int]]:
    """Returns the tokens that follow each row, greedily; behind a stop token they mean nothing.

    Args:
        rows_leave: what rows_may_leave says of the model.
    """
    stops = set(loaded.chat_format.stop_token_ids)
    said: list[list[int]] = [[] for _ in input_ids_BT]
    going, left, cache = list(range(len(said))), max_new_tokens, None
    while going and left:
        stretch = min(STRETCH, left) if rows_leave else left
        sequences_BT, cache = _stretch(loaded, input_ids_BT, mask_BT, cache, stretch)
        made = sequences_BT[:, input_ids_BT.shape[1] :].tolist()
        for row, tokens in zip(going, made, strict=True):
            said[row] += tokens
        left -= len(made[0])
        staying = [place for place, tokens in enumerate(made) if stops.isdisjoint(tokens)]
        input_ids_BT, mask_BT = sequences_BT[staying], pad(mask_BT[staying], (0, len(made[0])), value=1)
        if cache is not None and 0 < len(staying) < len(going):
            cache.batch_select_indices(torch.tensor(staying, device=loaded.device))
        going = [going[place] for place in staying]
    return said


def rows_may_leave(loaded: LoadedModel) -> bool:
    """Returns whether the model's cache can lose rows; it reads one token to find out."""
    one_token = torch.full((1, 1), rows_of(loaded.model) // 4, device=loaded.device)
    _, cache = _stretch(loaded, one_token, torch.ones_like(one_token), None, 1)
    return cache is not None and all(type(layer) in LAYERS for layer in cache.layers)


def _stretch(
    loaded: LoadedModel, input_ids_BT: Tensor, mask_BT: Tensor, cache: DynamicCache | None, new_tokens: int
) -> tuple[Tensor, DynamicCache | None]:
    """Returns the longer rows, and the cache to go on with; None if the model has another kind."""
    config = generation_config(loaded.chat_format, max_new_tokens=new_tokens)
    config.return_dict_in_generate = True
    so_far = {} if cache is None else {"past_key_values": cache}
    with computing(loaded.precision, loaded.device):
        output = loaded.model.generate(
            input_ids=input_ids_BT, attention_mask=mask_BT, generation_config=config, **so_far
        )
    kept = getattr(output, "past_key_values", None)
    return output.sequences, kept if isinstance(kept, DynamicCache) else None
