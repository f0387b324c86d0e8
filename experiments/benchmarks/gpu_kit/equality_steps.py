"""One optimizer step: of the device in float32 against the CPU's, and in bf16 against float32.

The step is the Trainer's own, in two micro-batches and with the head in several chunks. The reference has the same weights
and the same rows, the head in one chunk and no checkpointing; its A of a LoRA has a gradient, since B is not zero.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from components.data.prepare import PreparedDataset
from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import FullMethod, LoraMethod, TrialSpec
from components.training import loss
from experiments.benchmarks.gpu_kit.cases import Case
from experiments.benchmarks.gpu_kit.checks import Check, measured
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import few_layers
from experiments.benchmarks.gpu_kit.step_bounds import describe, near_in_bf16, same_in_fp32
from experiments.benchmarks.gpu_kit.steps import (
    METHODS,
    Step,
    difference,
    full_fp32,
    starting_weights,
    step_spec,
    take_step,
)
from experiments.benchmarks.gpu_kit.trials import RandomRunner

FAMILIES = ("llama-1b", "chatglm3-6b")
POSITIONS_PER_CHUNK = 8  # of the head
SECONDS = 8.0  # a case takes a CPU of 16 cores less


class Family:
    """A model on the device, the same one on the CPU, and rows of data. Models are made when they are first asked for."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self.settings = name, settings
        self.config = few_layers(name, settings)
        self.tokens = 64 if settings.tiny else 128

    @cached_property
    def dataset(self) -> PreparedDataset:
        """Of any two conversations of a row, packed or not, one is longer: rows have padding or several conversations."""
        directory = Path(tempfile.mkdtemp(prefix=f"{self.name}-", dir=self.settings.scratch)) / "data"
        long = [self.tokens * 5 // 8 - number for number in range(8)]
        lengths = [*long, *(self.tokens - length for length in long)]
        return random_dataset(directory, self.config.vocab_size, train=lengths, evaluate=[8])

    @cached_property
    def pair(self) -> tuple[RandomRunner, RandomRunner]:
        """The reference and the runner on the device, with equal weights.

        On a GPU the reference is the CPU's own step in the same way; on a CPU eager attention instead of sdpa.
        """
        reference = self.runner(device="cpu", attention="sdpa" if self.settings.on_gpu else "eager")
        base = reference.warm.load(BaseVariant("fp32"))
        return reference, self.runner(weights={name: weight.clone() for name, weight in base.state_dict().items()})

    @property
    def beside(self) -> str:
        """What a step is compared with, as a clause."""
        return "the CPU's" if self.settings.on_gpu else "one by eager attention in 4 micro-batches"

    def reference_spec(self, method: LoraMethod | FullMethod, *, packing: bool) -> TrialSpec:
        return step_spec(method, packing=packing, micro_rows=2 if self.settings.on_gpu else 1)

    def runner(
        self,
        kind: type[RandomRunner] = RandomRunner,
        *,
        device: str | None = None,
        attention: str = "sdpa",
        weights: Mapping[str, Tensor] | None = None,
    ) -> RandomRunner:
        """Returns a runner of this model; those of one device have equal weights in any case."""
        return kind(
            self.config,
            self.dataset,
            self.settings.scratch / "checkpoints",
            device=torch.device(device or self.settings.device_name),
            max_tokens=self.tokens,
            attention=attention,
            weights=weights,
        )


def step_cases(settings: Settings) -> Iterator[Case]:
    for name in FAMILIES:
        family = Family(name, settings)
        for method in METHODS:
            for packing in (True, False):
                rows = "packed rows" if packing else "a conversation a row"
                yield f"{name}, {method}, {rows}", partial(step_in_fp32, family, method, packing=packing), SECONDS
        for method in METHODS:
            yield f"{name}, {method}, bf16", partial(step_in_bf16, family, method), SECONDS
        if settings.on_gpu:
            yield f"{name}, TF32", partial(step_in_tf32, family), SECONDS


def step_in_fp32(family: Family, method: str, *, packing: bool) -> Iterator[Check]:
    spec = family.reference_spec(METHODS[method], packing=packing)
    reference, on_device = family.pair
    start = starting_weights(reference, spec)
    wanted = take_step(reference, spec, start)
    for checkpointing in (False, True):
        with head_in_chunks(family):
            spec = step_spec(METHODS[method], packing=packing, checkpointing=checkpointing)
            step = take_step(on_device, spec, start)
        rows = "packed rows" if packing else "a conversation a row"
        way = ", checkpointing" if checkpointing else ""
        asked = f"{family.name}, {method}, {rows}{way}: a step in fp32 is {family.beside}"
        yield same_in_fp32(asked, difference(step, wanted), **_figures(step))


def step_in_bf16(family: Family, method: str) -> Iterator[Check]:
    spec, (_, on_device) = step_spec(METHODS[method]), family.pair
    start = starting_weights(on_device, spec)
    wanted = take_step(on_device, spec, start)
    with head_in_chunks(family):
        step = take_step(on_device, step_spec(METHODS[method], precision="bf16", checkpointing=True), start)
    asked = f"{family.name}, {method}: a step in bf16 is near the one in fp32"
    yield near_in_bf16(asked, difference(step, wanted), **_figures(step))


def step_in_tf32(family: Family) -> Iterator[Check]:
    spec, (_, on_device) = step_spec(METHODS["LoRA"]), family.pair
    start = starting_weights(on_device, spec)
    wanted = take_step(on_device, spec, start)
    with full_fp32(tf32=True):
        found = difference(take_step(on_device, spec, start), wanted)
    yield measured(f"{family.name}, LoRA: how far TF32 is from fp32", describe(found), **found.figures())


@contextlib.contextmanager
def head_in_chunks(family: Family) -> Iterator[None]:
    """Inside, losses are computed for a few positions at a time, as for a large vocabulary."""
    with mock.patch.object(loss, "MAX_LOGITS_AT_ONCE", POSITIONS_PER_CHUNK * family.config.vocab_size):
        yield


def _figures(step: Step) -> dict[str, float]:
    return {"loss_nats": step.loss, "grad_norm": step.grad_norm}
