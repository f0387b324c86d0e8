"""How the workers of a trial share its model: replicated or sharded, and how their gradients are combined."""

from __future__ import annotations

import contextlib
import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_

from components.data.batch import Batch
from components.experiment.spec import LoraMethod, TrialSpec
from components.training.fsdp import is_sharded, local_rows
from components.training.gradient_norm import gradient_norm
from components.training.loss import ScoredModel
from components.training.workers import Workers

CLIP_EPSILON = 1e-6  # clip_grads_with_norm_'s own


class ParallelModel(Protocol):
    """A model that all workers of a trial train; each of them makes the same calls in the same order."""

    def backward(self, batch: Batch, scale: float, *, is_last: bool) -> Tensor:
        """Adds the gradient of (scale x loss, summed over all workers). Returns this worker's loss sum, unscaled.

        It stays on the device: reading it waits for all that the device has to do. `is_last` says that no other
        micro-batch of this step follows.
        """
        ...

    def clip_gradients(self, max_norm: float) -> float:
        """Scales all gradients down to this norm if their norm is larger. Returns their norm before that."""
        ...


def parallelize(scored: ScoredModel, workers: Workers) -> ParallelModel:
    return ShardedModel(scored, workers) if is_sharded(scored) else ReplicatedModel(scored, workers)


class ReplicatedModel:
    """Every worker has the whole model (DDP), or there is only one worker."""

    def __init__(self, scored: ScoredModel, workers: Workers) -> None:
        self.scored, self.workers = scored, workers
        self.ddp = (
            DistributedDataParallel(scored, broadcast_buffers=False, gradient_as_bucket_view=True)
            if workers.count > 1
            else None
        )

    def backward(self, batch: Batch, scale: float, *, is_last: bool) -> Tensor:
        waiting = contextlib.nullcontext() if is_last or self.ddp is None else self.ddp.no_sync()
        with waiting, self.scored.attending(batch):
            # DDP averages gradients over workers; x count turns that mean back into a sum.
            factor = self.workers.count * scale
            loss = (self.ddp or self.scored)(batch, factor)
            differentiate(loss)
        return cast(Tensor, loss.detach() / factor)

    def clip_gradients(self, max_norm: float) -> float:
        trained = [parameter for parameter in self.scored.parameters() if parameter.grad is not None]
        norm = gradient_norm(cast(Tensor, parameter.grad) for parameter in trained)
        clip_grads_with_norm_(trained, max_norm, norm)
        return float(norm)


class ShardedModel:
    """Every worker has a share of each weight, of its gradient and of the optimizer's state (FSDP2).

    Gradients are reduced after each micro-batch: if they were kept until the last one, each worker would hold all of them.
    """

    def __init__(self, scored: ScoredModel, workers: Workers) -> None:
        self.scored, self.workers = scored, workers

    def backward(self, batch: Batch, scale: float, *, is_last: bool) -> Tensor:
        factor = self.workers.count * scale  # FSDP averages gradients over workers, as DDP does
        with self.scored.attending(batch):
            loss = self.scored(batch, factor)
            differentiate(loss)
        return cast(Tensor, loss.detach() / factor)

    def clip_gradients(self, max_norm: float) -> float:
        # Summed by Workers: there may be no process group for gradients that are offloaded to the CPU.
        gradients = [local_rows(parameter.grad) for parameter in self.scored.parameters() if parameter.grad is not None]
        (squares,) = self.workers.sum([float(gradient_norm(gradients)) ** 2])
        norm = math.sqrt(squares)
        if norm > max_norm:
            for gradient in gradients:
                gradient.mul_(max_norm / (norm + CLIP_EPSILON))
        return norm


def differentiate(*losses: Tensor) -> None:
    """Outside of autocast, where a float32 product of a model's own code would get 16 bits in its backward pass.

    Only where there is autocast: inside such a context, too, layers that are computed again would keep their casts.
    """
    device = losses[0].device.type
    with torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else contextlib.nullcontext():
        torch.autograd.backward(losses)


def set_gradient_checkpointing(model: nn.Module, spec: TrialSpec) -> None:
    """Recomputes activations in the backward pass, if the trial asks for it."""
    if not spec.gradient_checkpointing:
        return
    model.activation_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    if isinstance(spec.method, LoraMethod):
        # The frozen embeddings give no gradient, and a checkpointed block without an input gradient trains nothing.
        # transformers has done so already for some adapters: a second call would lose the handles by which that ends.
        model.disable_input_require_grads()  # type: ignore[operator]
        model.enable_input_require_grads()  # type: ignore[operator]
