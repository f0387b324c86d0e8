"""Memory that tensors take: of a GPU by torch's allocator, of a CPU by a ledger of its live tensors."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, Self

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from components.storage.size import GB
from experiments.benchmarks.gpu_kit.settings import Settings


class Meter(Protocol):
    """Bytes of tensors, counted while the meter is entered as a context."""

    @property
    def held(self) -> int:
        """Now."""
        ...

    @property
    def peak(self) -> int:
        """At most since `reset`."""
        ...

    def reset(self) -> None:
        """Collects garbage first."""
        ...

    def limited_to(self, room: int) -> AbstractContextManager[None]:
        """Inside, what would take more than so many bytes beyond `held` raises torch.OutOfMemoryError."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: Any) -> None: ...


def in_gb(size: float) -> str:
    """Bytes in words."""
    return f"{size / GB:.2f} GB"


def used_on_card() -> int:
    """Bytes of the card that all processes use; this one's CUDA context is in it."""
    free, total = torch.cuda.mem_get_info()
    return total - free


def meter_of(settings: Settings) -> Meter:
    return CudaMeter() if settings.on_gpu else Ledger()


class Ledger(TorchDispatchMode):
    """Counts the storage of every tensor that an operation takes or makes, once, until it is freed.

    An operation sees what it is given and what it returns. A kernel's own workspace is not counted, and a tensor that no
    operation has touched is neither: `enter` counts it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self._limit: int | None = None
        self.held = self.peak = 0

    def reset(self) -> None:
        gc.collect()
        self.peak = self.held

    @contextlib.contextmanager
    def limited_to(self, room: int) -> Iterator[None]:
        self._limit = self.held + room
        try:
            yield
        finally:
            self._limit = None

    def enter(self, tensor: Tensor) -> None:
        if tensor.device.type != "cpu":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        weakref.finalize(storage, self._forget, key)
        self.held += storage.nbytes()
        self.peak = max(self.peak, self.held)
        if self._limit is not None and self.held > self._limit:
            raise torch.OutOfMemoryError(
                f"out of memory: {storage.nbytes():,} bytes more are {self.held:,}, and the limit is {self._limit:,}"
            )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self.enter(leaf)
        return result

    def _forget(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


class CudaMeter:
    """What torch's allocator has given out on the current device, the workspaces of its libraries among it.

    The allocator keeps its counts on the CPU: no kernel need be waited for.
    """

    @property
    def held(self) -> int:
        return torch.cuda.memory_allocated()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    @property
    def reserved_peak(self) -> int:
        """At most taken from the card since `reset`, the allocator's waste counted."""
        return torch.cuda.max_memory_reserved()

    def reset(self) -> None:
        gc.collect()
        torch.cuda.reset_peak_memory_stats()

    @contextlib.contextmanager
    def limited_to(self, room: int) -> Iterator[None]:
        torch.cuda.empty_cache()  # what is kept for later is of what may be taken
        total = torch.cuda.get_device_properties().total_memory
        share = (torch.cuda.memory_reserved() + room) / total
        torch.cuda.set_per_process_memory_fraction(min(1.0, share))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        return
