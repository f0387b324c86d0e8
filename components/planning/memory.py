"""What one worker of a trial will hold in memory: the rehearsed step, and what stands beside it all the time.

Bytes throughout; a GB for people is 1e9 of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict

from components.experiment.spec import FullMethod, TrialSpec
from components.planning.dry_run import DryRun
from components.training.workers import Parallel

Device = Literal["gpu", "cpu"]
Moment = Literal["training", "evaluation", "proof"]

# CUDA's context with the kernels of torch, cuBLAS and NCCL; what torch's allocator holds beyond what is in use.
CUDA_CONTEXT, CUDA_WASTE = 0.8e9, 0.05
# Python with torch, transformers, peft and Ray; what glibc keeps of what is freed (experiments/benchmarks/plan_memory.md).
CPU_PROCESS, CPU_WASTE = 0.6e9, 0.6
GATHERED_LAYERS = 2  # the one that computes, and the next, on its way
# bitsandbytes: two bytes of state a weight, and two float32 scales for each block of 256; small tensors keep float32.
EIGHT_BIT_STATE = 2 + 2 * 4 / 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The workers of a trial, as far as memory goes."""

    count: int = 1
    on_gpu: bool = True
    parallel: Parallel = "ddp"
    cpu_offload: bool = False

    @property
    def synced(self) -> bool:
        """Whether DistributedDataParallel keeps a bucket for every gradient."""
        return self.count > 1 and self.parallel == "ddp"


class MemoryPlan(BaseModel):
    """Of one worker at its fullest moment. `parts` are in bytes and in the order people read them."""

    model_config = ConfigDict(frozen=True)

    device: Device
    fullest_in: Moment
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def tensors(self) -> int:
        """Without the process, the context and what allocators waste: what torch itself asks for."""
        return self.total - self.parts["allocator"] - self.parts["process"]


def memory_plan(rehearsal: DryRun, spec: TrialSpec, group: Group) -> MemoryPlan:
    """The fuller of training and evaluation.

    Args:
        rehearsal: with `synced` as the group's.
    """
    moments = (_moment(rehearsal, spec, group, evaluates=evaluates) for evaluates in (False, True))
    return max(moments, key=lambda moment: moment.total)


def _moment(rehearsal: DryRun, spec: TrialSpec, group: Group, *, evaluates: bool) -> MemoryPlan:
    peak = rehearsal.evaluation if evaluates else rehearsal.training
    held = {kind: peak.bytes.get(kind, 0) for kind in ("gradients", "weight casts", "activations", "logits")}
    full = isinstance(spec.method, FullMethod)
    parts = {
        "weights": rehearsal.weight_bytes,
        "clean copy": rehearsal.weight_bytes if full else 0,
        "gradients": held["gradients"] + (rehearsal.trained_bytes if group.synced else 0),
        "optimizer": optimizer_bytes(rehearsal, spec),
        "weight casts": held["weight casts"],
        "activations": held["activations"],
        "logits": held["logits"],
    }
    if full and group.parallel == "fsdp" and group.count > 1:
        parts |= _shares(rehearsal, spec, group, parts, evaluates=evaluates)
    return _with_overhead(parts, group, "evaluation" if evaluates else "training")


def _with_overhead(parts: dict[str, int], group: Group, moment: Moment) -> MemoryPlan:
    if group.on_gpu:
        overhead = {"allocator": round(CUDA_WASTE * sum(parts.values())), "process": round(CUDA_CONTEXT)}
        return MemoryPlan(device="gpu", fullest_in=moment, parts=parts | overhead)
    passing = parts["weight casts"] + parts["activations"] + parts["logits"]
    overhead = {"allocator": round(CPU_WASTE * passing), "process": round(CPU_PROCESS)}
    return MemoryPlan(device="cpu", fullest_in=moment, parts=parts | overhead)


def proof_plan(rehearsal: DryRun, group: Group, *, base_bytes: int) -> MemoryPlan:
    """Of the process that proves the winner: one whole model, nothing to train it with, and the batch that is scored.

    Args:
        base_bytes: of the base model as it is loaded to be compared with: whole, and not quantized.
    """
    held = rehearsal.evaluation.bytes
    parts = {
        "weights": max(rehearsal.weight_bytes, base_bytes),
        "weight casts": held.get("weight casts", 0),
        "activations": held.get("activations", 0),
        "logits": held.get("logits", 0),
    }
    return _with_overhead(parts, group, "proof")


def optimizer_bytes(rehearsal: DryRun, spec: TrialSpec) -> int:
    """AdamW keeps two numbers for each one that is trained, of the same type."""
    if spec.optimizer.name == "adamw":
        return 2 * rehearsal.trained_bytes + 4 * rehearsal.trained_tensors
    return round(EIGHT_BIT_STATE * rehearsal.trained_parameters)


def _shares(
    rehearsal: DryRun, spec: TrialSpec, group: Group, parts: Mapping[str, int], *, evaluates: bool
) -> dict[str, int]:
    """FSDP2: a share of what is kept, and whole only what computes: the root's weights and a layer or two.

    The clean copy's share lies in the machine's memory, and with cpu_offload those of weights, gradients and optimizer.
    """
    computed = 2 if spec.precision == "bf16" else rehearsal.weight_bytes // rehearsal.parameters
    gathered = rehearsal.root_parameters + GATHERED_LAYERS * rehearsal.layer_parameters
    reduced = 0 if evaluates else (rehearsal.root_parameters + rehearsal.layer_parameters) * (computed + 4)
    stays = 0 if group.cpu_offload and group.on_gpu else 1
    return {
        "weights": stays * rehearsal.weight_bytes // group.count,
        "clean copy": 0 if group.on_gpu else rehearsal.weight_bytes // group.count,
        "gradients": (0 if evaluates else stays * rehearsal.trained_bytes // group.count + reduced),
        "optimizer": stays * parts["optimizer"] // group.count,
        "weight casts": gathered * computed,
    }
