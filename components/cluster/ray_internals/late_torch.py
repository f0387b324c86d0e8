"""Train's process group for torch, for which only the workers import torch."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private.ray_constants import env_integer
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.constants import (
    DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
    TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S,
)
from ray.train.v2._internal.util import TrainingFramework

GROUP_SECONDS = 1800  # to form the group, and for each operation in it: the default of TorchConfig

log = logging.getLogger(__name__)


class LateTorch(BackendConfig):  # type: ignore[misc]
    """What `TorchConfig` does: NCCL for workers with GPUs, else gloo, and torchrun's variables in the workers' environment.

    A slot and Train's controller hold such a configuration, and importing the module of Ray's costs each of these two
    processes two seconds for torch, one after the other, before any worker is started.

    Public way: `TorchTrainer` and `TorchConfig`, which import torch at the top of their modules. The functions that Ray runs
    on the workers are used as they are.
    Issue: none found.
    Test: tests/unit/test_ray_internals.py::test_what_workers_do_to_form_a_group_is_where_it_was
    """

    @property
    def backend_cls(self) -> type[Backend]:
        return _LateTorchBackend

    @property
    def train_func_context(self) -> Callable[[], contextlib.AbstractContextManager[None]]:
        return _on_its_device

    @property
    def framework(self) -> TrainingFramework:
        return TrainingFramework.TORCH


class _LateTorchBackend(Backend):  # type: ignore[misc]
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: LateTorch) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        backend = "nccl" if worker_group.get_resources_per_worker().get("GPU", 0) > 0 else "gloo"
        worker_group.execute(_set_variables, address, port)  # where this fails, no worker waits for the others yet
        size = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _join, backend, rank, size) for rank in range(size)])

    def on_shutdown(self, worker_group: Any, backend_config: LateTorch) -> None:
        seconds = env_integer(TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S, DEFAULT_TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S)
        try:
            ray.get(worker_group.execute_async(_leave, len(worker_group) > 1), timeout=seconds)
        except GetTimeoutError:
            log.warning("the workers' process group has not ended within %d seconds", seconds)


def _set_variables(address: str, port: int) -> None:
    from ray.train.torch import config

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    config._set_torch_distributed_env_vars()


def _join(backend: str, rank: int, size: int) -> None:
    from ray.train.torch import config

    config._setup_torch_process_group(backend, rank, size, "env://", GROUP_SECONDS)


def _leave(destroy: bool) -> None:
    from ray.train.torch import config

    config._shutdown_torch(destroy_process_group=destroy)


@contextlib.contextmanager
def _on_its_device() -> Iterator[None]:
    from ray.train.torch import config

    with config.TorchConfigContextManager():
        yield
