"""What the training loop knows about the machines it runs on."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.distributed as dist

from components.errors import InputError

Parallel = Literal["ddp", "fsdp"]


class UnfitWorkersError(InputError):
    """These machines cannot train any trial of this model, so another trial would fail in the same way."""


class Workers(Protocol):
    """`count` processes train one trial together; this is the one called `worker_rank`.

    With `ddp` each has the whole model, with `fsdp` a share of it. With `cpu_offload` that share is kept in CPU memory.
    """

    worker_rank: int
    count: int
    device: torch.device
    parallel: Parallel
    cpu_offload: bool

    def sum(self, values: list[float]) -> list[float]:
        """Returns each value summed over all workers, in float64. Every worker gets the same sums."""
        ...

    def barrier(self) -> None:
        """Returns once every worker has called it."""
        ...


class OneWorker:
    """A single process."""

    worker_rank, count = 0, 1
    parallel: Parallel = "ddp"
    cpu_offload = False

    def __init__(self, device: torch.device | None = None) -> None:
        self.device = device or torch.device("cpu")

    def sum(self, values: list[float]) -> list[float]:
        return values

    def barrier(self) -> None:
        return


class TorchWorkers:
    """The default process group: gloo on CPU, NCCL on GPUs. The caller (Ray Train, a test) has initialised it."""

    def __init__(self, device: torch.device, *, parallel: Parallel = "ddp", cpu_offload: bool = False) -> None:
        self.worker_rank, self.count, self.device = dist.get_rank(), dist.get_world_size(), device
        self.parallel, self.cpu_offload = parallel, cpu_offload

    def sum(self, values: list[float]) -> list[float]:
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals]

    def barrier(self) -> None:
        dist.barrier()
