"""All a training loop may know about the machines it runs on."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
import torch.distributed as dist

Parallel = Literal["ddp", "fsdp"]


class UnfitWorkersError(ValueError):
    """What these machines lack for every trial of this model: no other trial would fare better on them."""


class Workers(Protocol):
    """`count` processes train one trial together; this is the one called `worker_rank`.

    Under `ddp` each has the whole model, under `fsdp` a share of it; with `cpu_offload` that share waits in CPU memory.
    """

    worker_rank: int
    count: int
    device: torch.device
    parallel: Parallel
    cpu_offload: bool

    def sum(self, values: list[float]) -> list[float]:
        """Each value added up over all workers, in float64; every worker gets the same answer."""
        ...

    def barrier(self) -> None:
        """Returns once every worker has called it."""
        ...


class OneWorker:
    """A process on its own."""

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
    """The default process group: gloo on CPU, NCCL on GPUs. Somebody else (Ray Train, a test) has initialised it."""

    def __init__(self, device: torch.device, *, parallel: Parallel = "ddp", cpu_offload: bool = False) -> None:
        self.worker_rank, self.count, self.device = dist.get_rank(), dist.get_world_size(), device
        self.parallel, self.cpu_offload = parallel, cpu_offload

    def sum(self, values: list[float]) -> list[float]:
        totals = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(totals)
        return [float(total) for total in totals]

    def barrier(self) -> None:
        dist.barrier()
