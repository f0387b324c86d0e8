"""Whether this process can compute an experiment's attention: flash_attention_2 needs a package and a GPU."""

from __future__ import annotations

import logging

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_kernels_available

from components.experiment.spec import FLASH_ATTENTION
from components.models.meta_tensors import empty_model

log = logging.getLogger(__name__)

INSTALL_ADVICE = (
    "install flash-attn (its wheels are for one version of torch, Python and CUDA), or set model.attention: sdpa"
)


def is_usable(attention: str) -> bool:
    """Whether this process can compute it. transformers accepts the package `kernels` instead of flash-attn."""
    return attention != FLASH_ATTENTION or bool(is_flash_attn_2_available(kernels_fallback_ok=True))


def has_flash_package() -> bool:
    """Whether this Python has the package flash-attn; a machine without a GPU may have it."""
    return bool(FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["pkg_availability_check"]())


def missing_package(attention: str) -> str:
    """Returns what this Python lacks, with the way out; "" if nothing."""
    if attention != FLASH_ATTENTION or has_flash_package() or is_kernels_available():
        return ""
    return f"model.attention={FLASH_ATTENTION}: this Python has no package flash-attn; {INSTALL_ADVICE}"


def usable_attention(attention: str, config: PreTrainedConfig) -> str:
    """Returns the attention to load a model with: `auto` is sdpa where the model's class has it, else eager.

    So is flash attention for inference where it is missing: the model is the same.
    """
    if attention != "auto" and is_usable(attention):
        return attention
    instead = "sdpa" if has_sdpa(config) else "eager"
    if attention != "auto":
        log.warning(
            "model.attention=%s cannot be had here (no package, or no GPU); %s computes the same", attention, instead
        )
    return instead


def has_sdpa(config: PreTrainedConfig) -> bool:
    """Whether the class of a configuration computes by sdpa, which cannot cap scores, nor add sinks to them."""
    try:
        empty_model(config, dtype=torch.float32, attention="sdpa")
    except ValueError:
        return False
    return True


def attention_of(model: nn.Module) -> str:
    """Returns the attention that a loaded model computes by. transformers has names of its own for flash attention."""
    name = model.config._attn_implementation  # type: ignore[union-attr]
    return str(name) if name in ("sdpa", "eager") else FLASH_ATTENTION
