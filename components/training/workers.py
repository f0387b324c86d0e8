"""What the training loop knows about the machines it runs on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist

from components.errors import InputError

Parallel = Literal["ddp", "fsdp"]
# Longer than any worker waits for another one: for its upload of a checkpoint, or its copy of a base model. A worker that
# dies is noticed at once, because its connections close, and one that hangs by the default group, whose timeout is shorter.
CONTROL_TIMEOUT = timedelta(days=1)


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

    def from_first(self, value: Any) -> Any:
        """Returns the first worker's value on every worker. It can be anything that can be pickled."""
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

    def from_first(self, value: Any) -> Any:
        return value


class TorchWorkers:
    """The processes of torch's default process group, which the caller (Ray Train, a test) has initialised.

    Gradients and shards of weights go over that group (NCCL on GPUs, gloo on CPUs): DDP and FSDP see to it. Everything else
    is a few bytes that lie in CPU memory, and goes over a gloo group of its own: commands, counts, losses, barriers. There a
    worker that waits sleeps. In NCCL it would keep a kernel and a CPU core busy, and be ended by the group's timeout.
    """

    def __init__(self, device: torch.device, *, parallel: Parallel = "ddp", cpu_offload: bool = False) -> None:
        """All workers call it, equally often: it makes the control group."""
        self.worker_rank, self.count, self.device = dist.get_rank(), dist.get_world_size(), device
        self.parallel, self.cpu_offload = parallel, cpu_offload
        self.control = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)

    def sum(self, values: list[float]) -> list[float]:
        totals = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(totals, group=self.control)
        return [float(total) for total in totals]

    def barrier(self) -> None:
        dist.barrier(group=self.control)

    def from_first(self, value: Any) -> Any:
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]
