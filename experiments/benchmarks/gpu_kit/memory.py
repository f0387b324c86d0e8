"""Memory: what the plan says of a trial against what the trial takes, and a trial that the plan refuses."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial

import torch

from components.experiment.spec import LoraMethod
from components.planning.calibrate import load_kernels
from components.planning.memory import CUDA_CONTEXT, CUDA_WASTE, MemoryPlan
from experiments.benchmarks.gpu_kit.cases import Case, release_memory, run_cases
from experiments.benchmarks.gpu_kit.checks import Check, measured, passed_if, skipped
from experiments.benchmarks.gpu_kit.memory_refusal import refused_and_forced
from experiments.benchmarks.gpu_kit.memory_trials import METHODS, MemoryCase, Runners, planned, run_trial
from experiments.benchmarks.gpu_kit.meters import CudaMeter, in_gb, meter_of, used_on_card
from experiments.benchmarks.gpu_kit.settings import Settings

# A plan that is 10 % too high costs a larger machine now and then, one that is too low costs the trial.
ABOVE = 0.10
# The plan's tensors are those of a dry run. Kernels need workspaces, for which the plan has its waste.
BELOW_ALLOCATED = CUDA_WASTE
# On a CPU the dry run's kernels are the real ones, and a ledger counts as the plan does. What is left over are scalars.
LEDGER = 0.005

FIRST = (
    MemoryCase(shape="chatglm3-6b", method="LoRA", tokens=2048),
    MemoryCase(shape="chatglm3-6b", method="LoRA", tokens=8192, checkpointing=True),
    MemoryCase(shape="chatglm3-6b", method="LoRA", tokens=4096, accumulates=True),
    MemoryCase(shape="chatglm3-6b", method="QLoRA", tokens=2048),
    MemoryCase(shape="chatglm3-6b", method="QLoRA", tokens=8192, checkpointing=True),
)
THEN = (
    MemoryCase(shape="llama-1b", method="full", tokens=4096, accumulates=True),
    MemoryCase(shape="llama-1b", method="full", tokens=8192, checkpointing=True),
    MemoryCase(shape="llama-1b", method="LoRA", tokens=1024, rows=4),
    MemoryCase(shape="llama-1b", method="LoRA", tokens=8192),
    MemoryCase(shape="llama-3b", method="full", tokens=2048, checkpointing=True),
    MemoryCase(shape="llama-3b", method="LoRA", tokens=4096),
    MemoryCase(shape="llama-3b", method="QLoRA", tokens=1024),
)
SECONDS, SECONDS_OF_REFUSAL = 6.0, 15.0  # that one takes on a GPU at most


def run(settings: Settings) -> Iterator[Check]:
    part = _Memory(settings)
    for case in FIRST + THEN:
        case.write_rows(settings)
    with planned(FIRST + THEN, settings) as plan:
        yield from run_cases(part.cases(plan), settings)


class _Memory:
    """What the cases share: the meter, the base model, and what the libraries took before there was one."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.meter, self.runners = settings, meter_of(settings), Runners(settings)
        self.of_others = used_by_others() if settings.on_gpu else 0
        self.libraries = self.reserved_by_libraries = 0
        if settings.on_gpu:
            for precision in ("fp32", "bf16"):
                load_kernels(settings.device, precision)
            release_memory()
            self.libraries, self.reserved_by_libraries = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        self.waste: list[float] = []

    def cases(self, plan: Callable[[MemoryCase], MemoryPlan]) -> Iterator[Case]:
        seconds = 0.0 if self.settings.tiny else 1.0
        for case in FIRST:
            yield self._asked(case), partial(self.check, case, plan), seconds * SECONDS
        refusal = partial(refused_and_forced, self.settings, self.meter, self.runners)
        yield "what does not fit is refused, and dies if forced", refusal, seconds * SECONDS_OF_REFUSAL
        for case in THEN:
            yield self._asked(case), partial(self.check, case, plan), seconds * SECONDS
        if self.settings.on_gpu:
            yield "memory beside the tensors", self.beside, 0.0

    def check(self, case: MemoryCase, plan_of: Callable[[MemoryCase], MemoryPlan]) -> Iterator[Check]:
        asked, plan = self._asked(case), plan_of(case)
        if reason := _missing(case) or self._not_for_card(plan):
            yield skipped(asked, reason)
            return
        run_trial(case, self.runners.of(case), self.settings, self.meter)
        if isinstance(self.meter, CudaMeter):
            yield self._on_card(asked, plan, self.meter)
        else:
            yield check_ledger(asked, plan.tensors, self.meter.peak)

    def _on_card(self, asked: str, plan: MemoryPlan, meter: CudaMeter) -> Check:
        allocated = meter.peak - self.libraries
        reserved = meter.reserved_peak - self.reserved_by_libraries
        self.waste.append(reserved / allocated - 1)
        return check_card(asked, plan, allocated, reserved)

    def _asked(self, case: MemoryCase) -> str:
        bound = (
            f"the plan is 0 to {ABOVE:.0%} above what torch reserved, its tensors {-BELOW_ALLOCATED:.0%} to {ABOVE:+.0%}"
            " beside what it allocated"
            if self.settings.on_gpu
            else f"the plan's tensors are within {LEDGER:.1%} of the live ones"
        )
        return f"{case.name(self.settings)}: {bound}"

    def _not_for_card(self, plan: MemoryPlan) -> str:
        if not self.settings.on_gpu:
            return ""
        if self.settings.tiny:
            return "tiny trials are smaller than what the allocator takes from a card at once"
        room = torch.cuda.get_device_properties().total_memory
        return "" if plan.total <= room else f"the plan: {in_gb(plan.total)} of the card's {in_gb(room)}"

    def beside(self) -> Iterator[Check]:
        """The plan's constants, which no dry run sees."""
        if self.waste:
            worst = max(self.waste)
            yield measured(
                f"reserved beyond what was allocated; the plan has {CUDA_WASTE:.0%}",
                f"at most {worst:.1%}, on average {sum(self.waste) / len(self.waste):.1%}",
                waste=worst,
            )
        process = used_on_card() - self.of_others - torch.cuda.memory_reserved() + self.reserved_by_libraries
        yield passed_if(
            process <= CUDA_CONTEXT,
            f"CUDA's context and the libraries' workspaces take at most the plan's {in_gb(CUDA_CONTEXT)}",
            f"{in_gb(process)}, of it workspaces {in_gb(self.libraries)}",
            process_bytes=process,
            workspace_bytes=self.libraries,
        )


def check_ledger(asked: str, tensors: int, live: int) -> Check:
    error = tensors / live - 1
    return passed_if(
        abs(error) <= LEDGER,
        asked,
        f"{tensors / 1e6:.2f} MB planned, {live / 1e6:.2f} live: {error:+.2%}",
        planned_bytes=tensors,
        live_bytes=live,
    )


def check_card(asked: str, plan: MemoryPlan, allocated: int, reserved: int) -> Check:
    """
    Args:
        allocated, reserved: at most, without what the libraries had before the model was there.
    """
    whole = plan.total - plan.parts["process"]
    of_tensors, of_whole = plan.tensors / allocated - 1, whole / reserved - 1
    return passed_if(
        0 <= of_whole <= ABOVE and -BELOW_ALLOCATED <= of_tensors <= ABOVE,
        asked,
        f"planned {in_gb(whole)}, reserved {in_gb(reserved)}: {of_whole:+.1%}; tensors planned"
        f" {in_gb(plan.tensors)}, allocated {in_gb(allocated)}: {of_tensors:+.1%}; fullest in {plan.fullest_in}",
        planned_bytes=whole,
        reserved_bytes=reserved,
        planned_tensor_bytes=plan.tensors,
        allocated_bytes=allocated,
    )


def used_by_others() -> int:
    """Bytes of the card that other processes use; 0 where nvidia-smi does not say. Ask before this one uses the card."""
    card = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    words = ["nvidia-smi", "-i", card, "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=20)
        return int(done.stdout.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _missing(case: MemoryCase) -> str:
    method = METHODS[case.method]
    needs = isinstance(method, LoraMethod) and method.quantize is not None
    return "no package bitsandbytes" if needs and importlib.util.find_spec("bitsandbytes") is None else ""
