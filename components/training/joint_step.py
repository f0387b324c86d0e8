"""One optimizer step of several trials on one base: a forward and backward pass for all of them at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from components.data.batch import Batch
from components.experiment.spec import FLASH_ATTENTION
from components.models.random_numbers import RandomNumbers
from components.models.shared_base import SharedBase, TrialPart
from components.training.data_parallel import differentiate
from components.training.joint_batch import JointBatch, in_one_row, row_by_row
from components.training.loss import ScoredModel, loss_of_hidden, loss_of_logits, scored_positions
from components.training.step_draw import StepDraw
from components.training.trainer import Diverged, Trainer


@dataclass(slots=True)
class _TrialStep:
    """One trial's share of a step. `losses`: of its micro-batches so far, summed over targets, on the device."""

    trainer: Trainer
    drawn: StepDraw
    numbers: RandomNumbers
    losses: list[Tensor] = field(default_factory=list)


def step_together(base: SharedBase, trainers: Sequence[Trainer]) -> dict[Trainer, Diverged]:
    """Makes one step of each of these trials, as it would be alone. Returns those that have diverged, and why.

    A micro-batch has the rows of the trials' micro-batches of the same number; a trial with fewer of them is missing in the
    last ones.
    """
    steps = [_drawn(trainer) for trainer in trainers]
    rounds = max(len(step.drawn.batches) for step in steps)
    with trainers[0].scored.accumulating() if rounds > 1 else contextlib.nullcontext():
        for number in range(rounds):
            _backward(base, [step for step in steps if number < len(step.drawn.batches)], number)
    all_tokens = sum(step.drawn.num_tokens for step in steps)
    diverged: dict[Trainer, Diverged] = {}
    for step in steps:
        with base.alone(step.trainer.model):
            try:
                step.trainer.finish(step.drawn, step.losses, share=step.drawn.num_tokens / all_tokens)
            except Diverged as reason:
                diverged[step.trainer] = reason
    return diverged


def _drawn(trainer: Trainer) -> _TrialStep:
    drawn = trainer.draw()
    numbers = RandomNumbers(trainer.workers.device, drawn_again=trainer.spec.gradient_checkpointing)
    return _TrialStep(trainer, drawn, numbers)


def _backward(base: SharedBase, steps: Sequence[_TrialStep], number: int) -> None:
    """Adds to each trial's gradient that of its micro-batch of this number."""
    # A trial that packs no rows has not found out whether they are kept apart; what another one has found holds for all.
    scored = max((step.trainer.scored for step in steps), key=lambda scored: scored.keeps_apart)
    joint = _joined(scored, [step.drawn.batches[number] for step in steps])
    batch = joint.batch.to(scored.device)
    parts = [
        TrialPart(model=step.trainer.model, place=place, drawing=step.numbers.drawing)
        for step, place in zip(steps, joint.places, strict=True)
    ]
    rows, tokens = batch.token_ids_BT.shape
    with base.together(parts, (rows, tokens)), scored.attending(batch):
        losses = _losses(scored, batch, joint.counts, steps)
        differentiate(*losses)
    for step, loss in zip(steps, losses, strict=True):
        step.losses.append(loss.detach() / (1 / step.drawn.num_targets))


def _losses(scored: ScoredModel, batch: Batch, counts: Sequence[int], steps: Sequence[_TrialStep]) -> list[Tensor]:
    """Returns each trial's loss, by the number of targets of its step."""
    positions = scored_positions(batch)
    weights = torch.split(batch.weights_BT[positions], list(counts))
    scaled = [part * (1 / step.drawn.num_targets) for part, step in zip(weights, steps, strict=True)]

    def of_hidden(hidden_NH: Tensor, _: nn.Module, labels_N: Tensor) -> list[Tensor]:
        found = []
        parts = (torch.split(whole, list(counts)) for whole in (hidden_NH, labels_N))
        for step, weights_n, hidden_nH, labels_n in zip(steps, scaled, *parts, strict=True):
            with step.numbers.drawing():  # its head may have an adapter with dropout
                found.append(loss_of_hidden(hidden_nH, step.trainer.scored.head, labels_n, weights_n))
        return found

    def of_logits(logits_NV: Tensor, labels_N: Tensor) -> list[Tensor]:
        parts = (torch.split(whole, list(counts)) for whole in (logits_NV, labels_N))
        return [loss_of_logits(*each) for each in zip(*parts, scaled, strict=True)]

    return scored.over_targets(batch, positions, of_hidden, of_logits)


def _joined(scored: ScoredModel, batches: Sequence[Batch]) -> JointBatch:
    trees = any(batch.subtree_ends_BT is not None for batch in batches)
    knows_lengths = scored.keeps_apart and all(batch.lengths for batch in batches) and not trees
    return in_one_row(batches) if knows_lengths or scored.attention == FLASH_ATTENTION else row_by_row(batches)
