"""Measures which prompts may share a batch without another reply to any of them.

Attention skips padding by a mask. A model with a recurrent state may take it for text, or mix up the states of a batch.

S steps of generation, R rows, T tokens in each, V vocabulary. These letters are used in this file only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from components.models.load_trained import LoadedModel
from components.models.precision import computing
from components.models.token_id_check import rows_of
from components.scoring.reply import generation_config

ROWS, LENGTH, PADS = 4, 8, 5
STEPS = 3  # the prompt, and two tokens that are read from the cache
# As a share of the effect of another prompt. Padding that was read as text had 0.006 (recurrent_gemma) to 0.25 (rwkv);
# padding that was not had 0.000001 in float32, and up to 0.002 in bf16, where rounding is as large.
LEAK = 0.001
MIXED_UP = 0.3  # the same share; rows of a batch that were mixed up had 0.6 (rwkv), bf16 in real models up to 0.2
ROUNDING = 4.0  # times the effect of rounding, which is another one for each shape of the matrices


Company = Literal["any", "equally long", "none"]


@torch.no_grad()
def company_of(loaded: LoadedModel) -> Company:
    """Returns which prompts may be together in a batch, tried on a few tokens.

    Compared are the logits after the prompt and after tokens from the cache, which are given: in a batch, alone and padded.
    The effect of padding is set against that of another prompt and against that of rounding, so no tolerance depends on
    the model or its precision.
    """
    generator = torch.Generator().manual_seed(0)
    rows = rows_of(loaded.model)
    prompts_RT, others_RT = torch.randint(rows // 8, rows // 2, (2, ROWS, LENGTH), generator=generator)
    together = _logits(loaded, prompts_RT)
    alone = torch.cat([_logits(loaded, prompts_RT[row : row + 1]) for row in range(ROWS)], dim=1)
    padded = _logits(loaded, prompts_RT, pads=PADS)
    rounding, effect = _distance(together, alone), _distance(together, _logits(loaded, others_RT))
    if rounding > MIXED_UP * effect:
        return "none"
    return "any" if _distance(padded, together) <= LEAK * effect + ROUNDING * rounding else "equally long"


def _logits(loaded: LoadedModel, prompts_RT: Tensor, pads: int = 0) -> Tensor:
    """Returns the logits of each step, float32 [S, R, V]. The tokens of all steps are the same, whatever is likeliest."""
    padding = torch.full((len(prompts_RT), pads), loaded.chat_format.pad_token_id)
    input_ids = torch.cat([padding, prompts_RT], dim=1).to(loaded.device)
    mask = torch.ones_like(input_ids)
    mask[:, :pads] = 0
    given = rows_of(loaded.model) // 4
    config = generation_config(loaded.chat_format, max_new_tokens=STEPS)
    config.update(output_logits=True, return_dict_in_generate=True, eos_token_id=None)
    with computing(loaded.precision, loaded.device):
        output = loaded.model.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=config,
            prefix_allowed_tokens_fn=lambda row, so_far: [given],
        )
    return torch.stack([logits.float() for logits in output.logits])


def _distance(one: Tensor, other: Tensor) -> float:
    """Returns the root mean square of what two tensors of logits differ by."""
    return float((one - other).square().mean().sqrt())
