"""The memory of one worker of a trial: the peak of a dry run, and what is held beside it all the time.

Sizes are in bytes; a GB in messages is 1e9 of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.experiment.spec import FullMethod, OptimizerSpec, TrialSpec
from components.planning.dry_run import DryRun
from components.training.workers import Parallel

Device = Literal["gpu", "cpu"]
Moment = Literal["training", "evaluation", "proof"]

# CUDA's context with the kernels of torch, cuBLAS and NCCL (0.87e9 on an H200, measured without the last); what torch's
# allocator holds beyond what is in use (at most 4.6 % there).
CUDA_CONTEXT, CUDA_WASTE = 1.0e9, 0.05
# Python with torch, transformers, peft and Ray; what glibc keeps of what is freed (experiments/benchmarks/plan_memory.md).
CPU_PROCESS, CPU_WASTE = 0.6e9, 0.6
GATHERED_LAYERS = 2  # the one that computes, and the next, which is being gathered
# bitsandbytes: two bytes of state a weight, and two float32 scales for each block of 256; small tensors keep float32.
EIGHT_BIT_STATE = 2 + 2 * 4 / 256


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerGroup:
    """The workers of a trial: what their memory depends on."""

    count: int = 1
    on_gpu: bool = True
    parallel: Parallel = "ddp"
    cpu_offload: bool = False
    trials: int = 1  # that are trained together, on one base

    @property
    def synced(self) -> bool:
        """Whether DistributedDataParallel keeps a bucket for every gradient."""
        return self.count > 1 and self.parallel == "ddp"


class MemoryPlan(BaseModel):
    """One process at its fullest moment. `parts` are in bytes, in the order in which they are shown."""

    model_config = ConfigDict(frozen=True)

    device: Device
    fullest_in: Moment
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def tensors(self) -> int:
        """Without the process, the CUDA context and what allocators waste: what torch itself requests."""
        return self.total - self.parts["allocator"] - self.parts["process"]


def physical_memory() -> int:
    """Bytes of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def memory_plan(dry_run: DryRun, spec: TrialSpec, group: WorkerGroup) -> MemoryPlan:
    """The larger of training and evaluation.

    Args:
        dry_run: with `synced` as the group's.
    """
    moments = (_moment(dry_run, spec, group, evaluates=evaluates) for evaluates in (False, True))
    return max(moments, key=lambda moment: moment.total)


def _moment(dry_run: DryRun, spec: TrialSpec, group: WorkerGroup, *, evaluates: bool) -> MemoryPlan:
    peak = dry_run.evaluation if evaluates else dry_run.training
    held = {kind: peak.bytes.get(kind, 0) for kind in ("gradients", "weight casts", "activations", "logits")}
    in_pass = 1 if evaluates else group.trials  # one trial at a time is evaluated
    full = isinstance(spec.method, FullMethod)
    parts = {
        "weights": dry_run.weight_bytes + (group.trials - 1) * dry_run.trained_bytes,
        "clean copy": dry_run.weight_bytes if full else 0,
        "gradients": held["gradients"] * in_pass + (dry_run.trained_bytes if group.synced else 0),
        "optimizer": group.trials
        * optimizer_bytes(
            spec.optimizer,
            parameters=dry_run.trained_parameters,
            tensors=dry_run.trained_tensors,
            weight_bytes=dry_run.trained_bytes,
        ),
        "weight casts": held["weight casts"],
        "activations": held["activations"] * in_pass,
        "logits": held["logits"] * in_pass,
    }
    if full and group.parallel == "fsdp" and group.count > 1:
        parts |= _shares(dry_run, spec, group, parts, evaluates=evaluates)
    return _with_overhead(parts, group, "evaluation" if evaluates else "training")


def _with_overhead(parts: dict[str, int], group: WorkerGroup, moment: Moment) -> MemoryPlan:
    if group.on_gpu:
        overhead = {"allocator": round(CUDA_WASTE * sum(parts.values())), "process": round(CUDA_CONTEXT)}
        return MemoryPlan(device="gpu", fullest_in=moment, parts=parts | overhead)
    passing = parts["weight casts"] + parts["activations"] + parts["logits"]
    overhead = {"allocator": round(CPU_WASTE * passing), "process": round(CPU_PROCESS)}
    return MemoryPlan(device="cpu", fullest_in=moment, parts=parts | overhead)


def verification_plan(dry_run: DryRun, group: WorkerGroup, *, base_bytes: int) -> MemoryPlan:
    """The process that verifies the winner: one whole model, no optimizer, and the batch that is scored.

    Args:
        base_bytes: of the base model that the winner is compared with: whole, and not quantized.
    """
    held = dry_run.proof.bytes
    parts = {
        "weights": max(dry_run.weight_bytes, base_bytes),
        "weight casts": held.get("weight casts", 0),
        "activations": held.get("activations", 0),
        "logits": held.get("logits", 0),
    }
    return _with_overhead(parts, group, "proof")


def optimizer_bytes(optimizer: OptimizerSpec, *, parameters: int, tensors: int, weight_bytes: int) -> int:
    """AdamW keeps two numbers of the same type for each trained one. All arguments are of what is trained."""
    if optimizer.name == "adamw":
        return 2 * weight_bytes + 4 * tensors
    return round(EIGHT_BIT_STATE * parameters)


def _shares(
    dry_run: DryRun, spec: TrialSpec, group: WorkerGroup, parts: Mapping[str, int], *, evaluates: bool
) -> dict[str, int]:
    """FSDP2 shards what is kept; only what computes is whole: the root's weights and one or two layers.

    The shard of the clean copy is in CPU memory; with cpu_offload, so are those of weights, gradients and optimizer.
    """
    computed = 2 if spec.precision == "bf16" else dry_run.weight_bytes // dry_run.parameters
    gathered = dry_run.root_parameters + GATHERED_LAYERS * dry_run.layer_parameters
    reduced = 0 if evaluates else (dry_run.root_parameters + dry_run.layer_parameters) * (computed + 4)
    stays = 0 if group.cpu_offload and group.on_gpu else 1
    return {
        "weights": stays * dry_run.weight_bytes // group.count,
        "clean copy": 0 if group.on_gpu else dry_run.weight_bytes // group.count,
        "gradients": (0 if evaluates else stays * dry_run.trained_bytes // group.count + reduced),
        "optimizer": stays * parts["optimizer"] // group.count,
        "weight casts": gathered * computed,
    }
