"""A base model of which every worker holds a share (FSDP2): for full fine-tuning of what no single device can hold."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from components.experiment.spec import Dtype
from components.models.base.reusable import reset_training_state
from components.models.dtypes import DTYPES
from components.models.modality_towers import train_what_text_reaches
from components.models.sharded_safetensors import Rows
from components.training.loss import ScoredModel
from components.training.workers import Workers

Precision = Literal["fp32", "bf16"]


class ShardedBase:
    """Gives out one sharded model at a time, all of it trainable; what was trained before leaves no trace in it.

    Between trials every worker keeps its own share of the clean weights, in CPU memory.
    """

    def __init__(self, load: Callable[[Dtype], PreTrainedModel], workers: Workers, *, attention: str) -> None:
        """`load` gives the whole model on the CPU: mapped from its file, it is shared by the workers of a machine.

        So it comes in whatever dtype the file has. What `load` is told is what the shares will be turned into.
        """
        self._load, self.workers, self.attention = load, workers, attention
        self._scored: ScoredModel | None = None
        self._kept_as: tuple[Precision, Dtype] = "fp32", "fp32"
        self._clean: dict[str, Tensor] = {}

    def begin(self, precision: Precision, dtype: Dtype) -> ScoredModel:
        """A clean model in training mode, to be computed with at this precision.

        `dtype` is that of the shares, which the optimizer changes: in float32 nothing is rounded away, and a layer is cast
        to bf16 only while it is together. A layer at a time is turned into it: all of a model would no longer be mapped.
        """
        if self._scored is None or self._kept_as != (precision, dtype):
            self._scored = None  # FSDP fixes the precision for good, and two models would not fit
            self._clean = {}
            gc.collect()  # it refers to itself, by its hooks
            self._scored, self._kept_as = self._sharded(precision, dtype), (precision, dtype)
        else:
            reset_training_state(cast(PreTrainedModel, self._scored.model))
            with torch.no_grad():
                for name, parameter in self._scored.model.named_parameters():
                    local(parameter).copy_(self._clean[name])
        return self._scored.train()

    def _sharded(self, precision: Precision, dtype: Dtype) -> ScoredModel:
        base = self._load(dtype)
        base.config.use_cache = False
        train_what_text_reaches(base)
        scored = ScoredModel(base, precision=precision, attention=self.attention, device=self.workers.device)
        shard(scored, self.workers, DTYPES[dtype], precision)
        self._clean = {name: local(weight).detach().cpu().clone() for name, weight in base.named_parameters()}
        return scored


def shard(scored: ScoredModel, workers: Workers, dtype: torch.dtype, precision: Precision) -> None:
    """Leaves every worker its rows of each weight. Decoder layers come together one at a time, while they compute.

    One layer after the other moves to the device and is cut there, so no worker ever has all of the model on it.
    Raises ValueError if the model does not say what its layers are.
    """
    mesh = init_device_mesh(workers.device.type, (workers.count,))
    # What is summed over workers is summed in float32. Autocast stays on beside this, for softmax and the like.
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if precision == "bf16"
        else MixedPrecisionPolicy(cast_forward_inputs=False)
    )
    offload = CPUOffloadPolicy(pin_memory=workers.device.type == "cuda") if workers.cpu_offload else OffloadPolicy()
    for module in [*_layers(cast(PreTrainedModel, scored.model)), scored]:
        for weight in module.parameters():
            if not isinstance(weight, DTensor):  # of the root's those of its layers are cut already
                weight.data = weight.data.to(dtype)
        # The root too: then outside of a pass a parameter is its share, whoever looks at it.
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
    for method in ("losses", "isolates_packed_rows"):
        register_fsdp_forward_method(scored, method)


def local(tensor: Tensor) -> Tensor:
    """This worker's rows of it, sharing its memory; the tensor itself where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> Rows:
    """This worker's rows of it; all, where it is not sharded."""
    if not isinstance(tensor, DTensor):
        return Rows.all(tensor)
    per_worker = -(-len(tensor) // tensor.device_mesh.size())  # as torch.chunk cuts; the last workers may have none
    first = min(tensor.device_mesh.get_local_rank() * per_worker, len(tensor))
    return Rows(tensor.to_local(), first, len(tensor))


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise ValueError(
            f"a {model.config.model_type} does not say what its layers are, so it cannot be sharded; set parallel: ddp"
        )
    return layers
