"""The model and the rows as the peers get them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from components.experiment.spec import LoraMethod
from components.models.base.load_base import resolve_model
from components.models.dtypes import DTYPES
from experiments.benchmarks.gpu_kit.speed_rows import as_hugging_face_has_them
from experiments.benchmarks.step_kit.adapters import with_adapters
from experiments.benchmarks.step_kit.works import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerModel:
    """`trained` is the base itself, or has adapters around it."""

    base: PreTrainedModel
    trained: nn.Module


def peer_model(work: Work, dtype: torch.dtype, *, adapters_in_base_dtype: bool = False) -> PeerModel:
    """A base in this dtype."""
    base = cast(
        PreTrainedModel,
        AutoModelForCausalLM.from_pretrained(
            resolve_model(work.base), dtype=dtype, attn_implementation="sdpa", trust_remote_code=False
        ),
    )
    base.config.use_cache = False
    method = work.method_spec
    if isinstance(method, LoraMethod):
        trained = with_adapters(base, method, in_base_dtype=adapters_in_base_dtype)
        return PeerModel(base=base, trained=trained.train())
    return PeerModel(base=base, trained=base.train())


def base_dtype(work: Work) -> torch.dtype:
    """That of a frozen base, and of what is trained."""
    return DTYPES[work.precision] if isinstance(work.method_spec, LoraMethod) else torch.float32


def rows_of(work: Work) -> list[list[list[dict[str, Tensor]]]]:
    """The rows of each micro-batch of each step, without padding."""
    dataset = work.dataset()
    return [
        [as_hugging_face_has_them(dataset.train, rows, packing=True) for rows in step]
        for step in work.micro_batches(dataset)
    ]
