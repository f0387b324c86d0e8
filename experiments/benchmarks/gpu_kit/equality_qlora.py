"""QLoRA against its dequantized reference: a plain model whose weights are what the packed ones stand for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec

import torch
from torch import nn
from transformers import PreTrainedModel

from components.experiment.base_precisions import BaseVariant
from components.experiment.spec import LoraMethod
from experiments.benchmarks.gpu_kit.cases import Case
from experiments.benchmarks.gpu_kit.checks import Check, measured, skipped
from experiments.benchmarks.gpu_kit.equality_steps import FAMILIES, Family, head_in_chunks
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import few_layers
from experiments.benchmarks.gpu_kit.step_bounds import near_in_bf16, same_in_fp32
from experiments.benchmarks.gpu_kit.steps import difference, starting_weights, step_spec, take_step
from experiments.benchmarks.gpu_kit.trials import RandomRunner

PLAIN = LoraMethod(rank=8, alpha=16.0)
PACKED = PLAIN.model_copy(update={"quantize": "nf4"})
SECONDS = 8.0


class DequantizedRunner(RandomRunner):
    """Its base is quantized to nf4, and what that gives is kept in plain linear layers."""

    def _load(self, kind: BaseVariant) -> PreTrainedModel:
        return dequantized(super()._load(kind._replace(quantize="nf4")))


def dequantized(model: PreTrainedModel) -> PreTrainedModel:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    for name, layer in list(model.named_modules()):
        if isinstance(layer, Linear4bit):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
            plain.weight = nn.Parameter(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
            plain.bias = layer.bias
            model.set_submodule(name, plain)
    # What transformers and peft ask a model for.
    model.is_loaded_in_4bit = model.is_quantized = False
    return model


def qlora_cases(settings: Settings) -> Iterator[Case]:
    for name in FAMILIES:
        yield f"{name}, QLoRA", partial(against_dequantized, name, settings), SECONDS
    yield "nf4 of a GPU and of a CPU", partial(packed_alike, settings), SECONDS


def against_dequantized(name: str, settings: Settings) -> Iterator[Check]:
    asked = f"{name}, QLoRA: a step is that of the dequantized weights"
    if find_spec("bitsandbytes") is None:
        yield skipped(asked, "no package bitsandbytes here")
        return
    family = Family(name, settings)
    one, other = family.runner(RandomRunner), family.runner(DequantizedRunner)
    for precision, judge in (("fp32", same_in_fp32), ("bf16", near_in_bf16)):
        for packing in (True, False):
            plain = step_spec(PLAIN, packing=packing, precision=precision)
            start = starting_weights(other, plain)
            wanted = take_step(other, plain, start)
            with head_in_chunks(family):
                spec = step_spec(PACKED, packing=packing, precision=precision, checkpointing=packing)
                step = take_step(one, spec, start)
            rows = "packed rows, checkpointing" if packing else "a conversation a row"
            yield judge(f"{asked}, {precision}, {rows}", difference(step, wanted))


def packed_alike(settings: Settings) -> Iterator[Check]:
    asked = "nf4 of the same weights, packed by the GPU and by the CPU"
    if not settings.on_gpu or find_spec("bitsandbytes") is None:
        yield skipped(asked, "no GPU is used" if not settings.on_gpu else "no package bitsandbytes here")
        return
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    sizes = few_layers(FAMILIES[0], settings)
    weight = torch.empty(sizes.intermediate_size, sizes.hidden_size).normal_(
        std=0.02, generator=torch.Generator().manual_seed(0)
    )
    packed, plain = [], []
    for device in ("cpu", settings.device_name):
        codes, state = quantize_4bit(weight.to(device), quant_type="nf4", compress_statistics=True)
        packed.append(codes.flatten().cpu())
        plain.append(dequantize_4bit(codes, state).cpu())
    same = float((packed[0] == packed[1]).float().mean())
    apart = float((plain[0] - plain[1]).norm() / plain[0].norm())
    seen = f"{same:.4%} of the bytes are equal; the dequantized weights are {apart:.1e} apart"
    yield measured(asked, seen, equal_bytes=same, dequantized_relative=apart)
