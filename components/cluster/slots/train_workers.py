"""The workers of a slot's Ray Train run, in the training loop's terms."""

from __future__ import annotations

import os

import ray.train
import ray.train.torch
import ray.util
import torch

from components.cluster.private_session import GLOO_INTERFACE, interface_with
from components.experiment.spec import WorkersSpec
from components.training.workers import OneWorker, TorchWorkers, Workers


def workers_of_this_run(spec: WorkersSpec) -> Workers:
    """Returns the workers of this process' Ray Train run. Every process of the run calls it."""
    torch.set_num_threads(max(1, int(spec.cpus_per_worker)))
    device = ray.train.torch.get_device() if spec.gpus_per_worker else torch.device("cpu")
    if spec.gpus_per_worker and device.type != "cuda":
        raise RuntimeError("gpus_per_worker is above 0, but torch sees no CUDA device here: is its build the CPU's?")
    if device.type == "cuda":
        torch.cuda.set_device(device)  # FSDP and NCCL use the current one
    if ray.train.get_context().get_world_size() == 1 and spec.parallel == "ddp":
        return OneWorker(device)
    # Gloo takes the interface of the host's name, which on some systems is the loopback's (Debian's 127.0.1.1): other
    # machines could not connect to it. Ray's address is one that they reach. A cluster of this machine alone has set it.
    if interface := interface_with(ray.util.get_node_ip_address()):
        os.environ.setdefault(GLOO_INTERFACE, interface)
    return TorchWorkers(device, parallel=spec.parallel, cpu_offload=spec.cpu_offload)


def device_in_words(device: torch.device) -> str:
    """E.g. `NVIDIA L40S (CUDA_VISIBLE_DEVICES=3)`: the card that worker-seconds are paid for, and that Ray gave it."""
    if device.type != "cuda":
        return device.type
    return f"{torch.cuda.get_device_name(device)} (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')})"
