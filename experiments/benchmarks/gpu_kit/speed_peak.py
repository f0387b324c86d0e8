"""The yardsticks: what the card multiplies in a second, and what a step must multiply at least."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from components.planning.memory import physical_memory
from experiments.benchmarks.gpu_kit.settings import Settings

SIZES = {"cuda": (4096, 8192, 16384), "cpu": (256, 512)}
PRODUCTS, ROUNDS = 10, 3  # timed together; the best round counts


def measured_peak(settings: Settings) -> tuple[float, int]:
    """Returns (floating-point operations per second in bf16, side of the square matrices that gave most)."""
    return max((_rate(size, settings.device), size) for size in SIZES[settings.device_name])


def _rate(size: int, device: torch.device) -> float:
    generator = torch.Generator(device).manual_seed(0)
    one, other = (torch.randn(size, size, generator=generator, device=device).bfloat16() for _ in range(2))
    result = torch.empty_like(one)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(one, other.T, out=result)  # as a linear layer has its weight: a CPU may have another kernel for it

    multiply()  # chooses the kernel
    return PRODUCTS * 2 * size**3 / min(seconds_of(multiply, device) for _ in range(ROUNDS))


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Of the device, from its own clock where it has one."""
    if device.type != "cuda":
        began = time.perf_counter()
        work()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def room(settings: Settings) -> float:
    """Bytes of the card, or of this machine."""
    if settings.on_gpu:
        return float(torch.cuda.get_device_properties(settings.device).total_memory)
    return float(physical_memory())


def model_flops(
    model: nn.Module, config: PreTrainedConfig, lengths: Sequence[int], *, targets: int | None = None
) -> float:
    """Operations that a step over conversations of these lengths cannot do without.

    A multiplication by a weight is 2 operations a token forward and 2 backward for its input; 2 more for the weight's own
    gradient if it is trained: 6 N for full fine-tuning, 4 N for LoRA, whose adapters are trained. N are the weights of the
    linear layers, the head included, the embeddings not. Attention is that of each token to its own conversation's past: 4
    operations a pair, head and dimension forward, twice that backward. What is computed again (logits, checkpoints), padding,
    and pairs that a mask hides are work that is not counted.

    Args:
        targets: how many tokens need the head; by default all do.
    """
    per_token = sum(_operations(module.weight) for module in model.modules() if isinstance(module, nn.Linear))
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    unscored = 0 if targets is None else sum(lengths) - targets
    spared = unscored * _operations(model.get_output_embeddings().weight)  # type: ignore[operator]
    return per_token * sum(lengths) - spared + 3 * 4 * config.num_hidden_layers * width * pairs


def _operations(weight: Tensor) -> int:
    return (6 if weight.requires_grad else 4) * weight.numel()
