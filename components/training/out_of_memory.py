"""Telling that memory has run out from all other errors: by Python's, torch's and the system's own words for it."""

from __future__ import annotations

import errno

import torch

# torch's allocator for the CPU, CUDA's own calls and cuBLAS say it in the text of a RuntimeError.
WORDS = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


class RowsExceedMemory(RuntimeError):
    """Memory has run out while rows were computed, so fewer rows at once may fit."""


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)
