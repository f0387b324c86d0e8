"""Where the time of one step goes: on the device by kind of work, and in the host that waits for it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from experiments.benchmarks.gpu_kit.speed_peak import synchronize

# By the names of CUDA kernels, and of torch's operations on a CPU; the first that matches counts. Attention comes before
# matmul because its kernels are made of the same building blocks.
GROUPS = {
    "attention": r"flash|fmha|sdpa|scaled_dot_product|attention|triton_tem",
    "optimizer": r"adam|multi_tensor_apply|_foreach_|lpnorm",
    "matmul": r"gemm|nvjet|cutlass|cublas|wgmma|splitk|\bmm\b|addmm|bmm|::mm|linear",
    "loss": r"softmax|nll_loss|cross_entropy",
    "memcpy": r"memcpy|memset",
    "index": r"index|gather|scatter|embedding|nonzero|\bcub\b|cub::",
    "elementwise": r"elementwise|vectorized|reduce_kernel|copy|mul|add|sub|div|pow|rsqrt|mean|silu|cat|sum|neg|triton",
}
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "aten::_local_scalar_dense")
SHOWN = 0.005  # of the time: smaller shares are left out of the sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class StepProfile:
    """Seconds of the device (without one, of torch's operations on the CPU).

    `groups`: by kind of work. `busy`: while any of it ran. `kernels`: launched on the device. `waits`: how often each call
    that waits was made.
    """

    groups: Mapping[str, float]
    busy: float
    kernels: int
    waits: Mapping[str, int]

    def sentence(self) -> str:
        total = sum(self.groups.values())
        parts = sorted(self.groups.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts if seconds / total >= SHOWN)


def profile_step(step: Callable[[], object], device: torch.device) -> StepProfile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    synchronize(device)
    with profile(activities=activities) as profiler:
        step()
        synchronize(device)
    events = list(profiler.events() or [])
    host = [event for event in events if event.device_type == DeviceType.CPU]
    kernels = [event for event in events if _is_kernel(event)]
    if device.type == "cuda":
        seconds = [(event.name, event.time_range.elapsed_us() / 1e6) for event in kernels]
        busy = covered((event.time_range.start / 1e6, event.time_range.end / 1e6) for event in kernels)
    else:
        seconds = [(event.name, event.self_cpu_time_total / 1e6) for event in host if event.name.startswith("aten::")]
        busy = sum(spent for _, spent in seconds)
    waits = Counter(event.name for event in host if event.name in WAITS)
    return StepProfile(groups=by_group(seconds), busy=busy, kernels=len(kernels), waits=waits)


def waiting_lines(step: Callable[[], object]) -> list[tuple[str, int]]:
    """Where the host waits for a CUDA device in a step: ("file.py:line", how often), by torch's own debug mode."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return lines_of(warning for warning in caught if "synchronizing CUDA operation" in str(warning.message))


def lines_of(caught: Iterable[Any]) -> list[tuple[str, int]]:
    return Counter(f"{Path(warning.filename).name}:{warning.lineno}" for warning in caught).most_common()


def group_of(name: str, groups: Mapping[str, str] = GROUPS) -> str:
    lowered = name.lower()
    return next((group for group, pattern in groups.items() if re.search(pattern, lowered)), "other")


def by_group(seconds: Iterable[tuple[str, float]], groups: Mapping[str, str] = GROUPS) -> dict[str, float]:
    found: Counter[str] = Counter()
    for name, spent in seconds:
        found[group_of(name, groups)] += spent
    return dict(found)


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """How much time the spans cover together: what overlaps counts once."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def _is_kernel(event: Any) -> bool:
    """Whether it ran on the device; what the profiler projects there from the host's annotations did not."""
    return event.device_type == DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
