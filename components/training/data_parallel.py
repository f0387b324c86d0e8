"""How the workers of a trial share its model: passes over it, and what has to happen to gradients between them."""

from __future__ import annotations

import contextlib
import math
from typing import Protocol

from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from components.data.batch import Batch
from components.training.fsdp import is_sharded, local
from components.training.loss import ScoredModel
from components.training.workers import Workers

CLIP_EPSILON = 1e-6  # clip_grad_norm_'s own


class Shared(Protocol):
    """A model that all workers of a trial train; each of them calls these in the same order."""

    def backward(self, batch: Batch, scale: float, *, is_last: bool) -> float:
        """Adds the gradient of (scale x loss, summed over all workers). Returns this worker's loss sum, unscaled.

        `is_last` says that no other micro-batch of this step follows.
        """
        ...

    def clip_gradients(self, max_norm: float) -> float:
        """Scales all gradients down to this norm if theirs is larger. Returns theirs."""
        ...


def shared(scored: ScoredModel, workers: Workers) -> Shared:
    return Sharded(scored, workers) if is_sharded(scored) else Replicated(scored, workers)


class Replicated:
    """Every worker has the whole model (DDP), or there is one worker only."""

    def __init__(self, scored: ScoredModel, workers: Workers) -> None:
        self.scored, self.workers = scored, workers
        self.ddp = (
            DistributedDataParallel(scored, broadcast_buffers=False, gradient_as_bucket_view=True)
            if workers.count > 1
            else None
        )

    def backward(self, batch: Batch, scale: float, *, is_last: bool) -> float:
        with contextlib.nullcontext() if is_last or self.ddp is None else self.ddp.no_sync():
            loss = (self.ddp or self.scored)(batch)
            # DDP averages gradients over workers; x count turns that mean back into a sum.
            (loss * self.workers.count * scale).backward()
        return float(loss.detach())

    def clip_gradients(self, max_norm: float) -> float:
        return float(clip_grad_norm_(self.scored.parameters(), max_norm))


class Sharded:
    """Every worker has a share of each weight, of its gradient and of the optimizer's state (FSDP2).

    Gradients are shared out after each micro-batch: kept until the last one, each worker would hold all of them.
    """

    def __init__(self, scored: ScoredModel, workers: Workers) -> None:
        self.scored, self.workers = scored, workers

    def backward(self, batch: Batch, scale: float, *, is_last: bool) -> float:
        loss = self.scored(batch)
        # FSDP averages gradients over workers, as DDP does.
        (loss * self.workers.count * scale).backward()
        return float(loss.detach())

    def clip_gradients(self, max_norm: float) -> float:
        # By the workers' own sum: for gradients that wait in CPU memory there may be no process group.
        gradients = [local(parameter.grad) for parameter in self.scored.parameters() if parameter.grad is not None]
        (squares,) = self.workers.sum([float(get_total_norm(gradients)) ** 2])
        norm = math.sqrt(squares)
        if norm > max_norm:
            for gradient in gradients:
                gradient.mul_(max_norm / (norm + CLIP_EPSILON))
        return norm
