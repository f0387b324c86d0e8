"""A base model that is sharded over the workers (FSDP2): full fine-tuning of models that no single device can hold."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import cast

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

from components.errors import InputError
from components.experiment.spec import Dtype
from components.models.attention_backend import attention_of
from components.models.base.reusable import reset_training_state
from components.models.dtypes import DTYPES
from components.models.modality_towers import train_what_text_reaches
from components.models.sharded_safetensors import Rows
from components.training.loss import ScoredModel
from components.training.workers import Workers


class ShardedBase:
    """Provides one sharded model at a time, with all weights trainable and no trace of earlier training.

    Between trials every worker keeps its own share of the clean weights in CPU memory.
    """

    def __init__(self, load: Callable[[Dtype], PreTrainedModel], workers: Workers) -> None:
        """
        Args:
            load: returns the whole model on the CPU, mapped from its file, so that the workers of a machine share it. It
                therefore has the file's dtype; the argument is the dtype that the shares are converted to.
        """
        self._load, self.workers = load, workers
        self._scored: ScoredModel | None = None
        self._kept_as: tuple[Dtype, Dtype] = "fp32", "fp32"
        self._clean: dict[str, Tensor] = {}

    def acquire(self, precision: Dtype, dtype: Dtype) -> ScoredModel:
        """Returns a clean model in training mode that computes at this precision.

        `dtype` is the dtype of the shares, which the optimizer updates. In float32 no update is rounded away, and a layer is
        cast to bf16 only while it is gathered. Layers are converted one at a time: a whole converted model would no longer
        be mapped from its file.
        """
        if self._scored is None or self._kept_as != (precision, dtype):
            self._scored = None  # FSDP cannot change the precision, and two models would not fit
            self._clean = {}
            gc.collect()  # the model refers to itself through its hooks
            self._scored, self._kept_as = self._load_sharded(precision, dtype), (precision, dtype)
        else:
            reset_training_state(cast(PreTrainedModel, self._scored.model))
            with torch.no_grad():
                for name, parameter in self._scored.model.named_parameters():
                    local_rows(parameter).copy_(self._clean[name])
        return self._scored.train()

    def drop(self) -> None:
        """The next trial loads a model of its own."""
        self._scored, self._clean = None, {}

    def _load_sharded(self, precision: Dtype, dtype: Dtype) -> ScoredModel:
        base = self._load(dtype)
        base.config.use_cache = False
        train_what_text_reaches(base)
        attention, device = attention_of(base), self.workers.device
        scored = ScoredModel(base, precision=precision, attention=attention, device=device)
        shard(scored, self.workers, DTYPES[dtype], precision)
        self._clean = {name: local_rows(weight).detach().cpu().clone() for name, weight in base.named_parameters()}
        return scored


def shard(scored: ScoredModel, workers: Workers, dtype: torch.dtype, precision: Dtype) -> None:
    """Leaves every worker its rows of each weight. Decoder layers are gathered one at a time, while they compute.

    Layers are moved to the device and sharded there one after the other, so no device ever holds the whole model.
    Raises InputError if the model does not name its layers.
    """
    mesh = init_device_mesh(workers.device.type, (workers.count,))
    # Sums over workers are in float32. Autocast stays on as well, for softmax and similar operations.
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
        if precision == "bf16"
        else MixedPrecisionPolicy(cast_forward_inputs=False)
    )
    offload = CPUOffloadPolicy(pin_memory=workers.device.type == "cuda") if workers.cpu_offload else OffloadPolicy()
    for module in [*_layers(cast(PreTrainedModel, scored.model)), scored]:
        for weight in module.parameters():
            if not isinstance(
                weight, DTensor
            ):  # the root's weights include those of its layers, which are sharded already
                weight.data = weight.data.to(dtype)
        # The root too: so outside of a pass every parameter is its share.
        fully_shard(module, mesh=mesh, mp_policy=policy, offload_policy=offload, reshard_after_forward=True)
    for method in ("losses", "isolates_packed_rows"):
        register_fsdp_forward_method(scored, method)


def local_rows(tensor: Tensor) -> Tensor:
    """Returns this worker's rows, sharing their memory; the tensor itself if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> Rows:
    """Returns this worker's rows with their position; all rows if the tensor is not sharded."""
    if not isinstance(tensor, DTensor):
        return Rows.all(tensor)
    per_worker = -(-len(tensor) // tensor.device_mesh.size())  # like torch.chunk; the last workers may have none
    first = min(tensor.device_mesh.get_local_rank() * per_worker, len(tensor))
    return Rows(tensor.to_local(), first, len(tensor))


def is_sharded(module: nn.Module) -> bool:
    return isinstance(module, FSDPModule)


def _layers(model: PreTrainedModel) -> list[nn.Module]:
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise InputError(
            f"a {model.config.model_type} does not say what its layers are, so it cannot be sharded; set parallel: ddp"
        )
    return layers
