"""A training loop as one writes it by hand, with what one can know of it: the head for targets only, no mask without need."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from components.conversations.chat_formats.rendered import IGNORE_INDEX
from components.models.dtypes import DTYPES
from experiments.benchmarks.gpu_kit.speed_bench import STANDS_STILL
from experiments.benchmarks.gpu_kit.speed_rows import pad
from experiments.benchmarks.step_kit.peer_models import peer_model, rows_of
from experiments.benchmarks.step_kit.turns import Turns
from experiments.benchmarks.step_kit.works import Work


def run_in_one_dtype(work: Work, turns: Turns) -> None:
    """Everything in the work's precision: weights, adapters, gradients, the optimizer's state."""
    _run(work, turns, DTYPES[work.precision], autocast=False)


def run_mixed(work: Work, turns: Turns) -> None:
    """Weights in float32, and products in bfloat16 by autocast."""
    _run(work, turns, torch.float32, autocast=True)


def _run(work: Work, turns: Turns, dtype: torch.dtype, *, autocast: bool) -> None:
    model = peer_model(work, dtype, adapters_in_base_dtype=not autocast)
    parameters = [parameter for parameter in model.trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=STANDS_STILL.learning_rate, weight_decay=0.0, fused=True)
    steps = rows_of(work)
    computing = torch.autocast("cpu", dtype=torch.bfloat16) if autocast else contextlib.nullcontext()
    for number in turns:
        targets = sum(_targets(row) for rows in steps[number] for row in rows)
        losses = []
        for rows in steps[number]:
            with computing:
                loss = _loss_sum(model.base, rows) / targets
            loss.backward()
            losses.append(loss.detach())
        clip_grad_norm_(parameters, STANDS_STILL.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        turns.made(losses)


def _loss_sum(base: PreTrainedModel, rows: Sequence[dict[str, Tensor]]) -> Tensor:
    batch = pad(rows)
    if all(int((row["position_ids"] == 0).sum()) == 1 for row in rows):
        del batch["position_ids"]  # one conversation a row: padding stands behind, where nothing sees it
    labels = batch.pop("labels")[:, 1:]
    hidden = base.base_model(**batch, use_cache=False).last_hidden_state[:, :-1]
    scored = labels != IGNORE_INDEX
    logits = base.get_output_embeddings()(hidden[scored])
    return F.cross_entropy(logits.float(), labels[scored], reduction="sum")


def _targets(row: dict[str, Tensor]) -> int:
    return int((row["labels"] != IGNORE_INDEX).sum())
