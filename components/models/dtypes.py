"""The dtypes of experiment files and of exports, as torch has them."""

from __future__ import annotations

import torch

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def torch_dtype(dtype: str) -> torch.dtype:
    """Returns the dtype of a model's weights. Trials resolve `auto` (ModelSpec.dtype_of); elsewhere it is float32."""
    return torch.float32 if dtype == "auto" else DTYPES[dtype]
