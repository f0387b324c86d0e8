"""Whether this process can compute an experiment's attention: flash_attention_2 needs a package and a GPU."""

from __future__ import annotations

import logging

from transformers.modeling_flash_attention_utils import FLASH_ATTENTION_COMPATIBILITY_MATRIX
from transformers.utils import is_flash_attn_2_available
from transformers.utils.import_utils import is_kernels_available

from components.experiment.spec import FLASH_ATTENTION

log = logging.getLogger(__name__)

INSTALL_ADVICE = (
    "install flash-attn (its wheels are for one version of torch, Python and CUDA), or set model.attention: sdpa"
)


def is_usable(attention: str) -> bool:
    """Whether this process can compute it. transformers accepts the package `kernels` instead of flash-attn."""
    return attention != FLASH_ATTENTION or bool(is_flash_attn_2_available(kernels_fallback_ok=True))


def missing_package(attention: str) -> str:
    """Returns what this Python lacks, with the way out; "" if nothing. A machine without a GPU may have the package."""
    has_package = FLASH_ATTENTION_COMPATIBILITY_MATRIX[2]["pkg_availability_check"]
    if attention != FLASH_ATTENTION or has_package() or is_kernels_available():
        return ""
    return f"model.attention={FLASH_ATTENTION}: this Python has no package flash-attn; {INSTALL_ADVICE}"


def usable_attention(attention: str) -> str:
    """Returns the attention for inference: a model trained with flash attention is the same with sdpa, which always works."""
    if is_usable(attention):
        return attention
    log.warning("model.attention=%s cannot be had here (no package, or no GPU); sdpa computes the same", attention)
    return "sdpa"
