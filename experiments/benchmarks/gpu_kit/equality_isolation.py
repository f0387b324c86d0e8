"""Packed conversations do not see each other, whichever kernel computes the attention; and the product's probe knows.

Apart, each is an attention of its own. Block masks rule out torch's own FLASH kernel, which takes none: with them sdpa uses
another one. The package flash-attn has no masks either, but bounds of sequences, which transformers makes from the positions.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel

from components.data.collate import collate
from components.data.model_inputs import model_inputs
from components.data.token_store import TokenStore
from components.experiment.spec import FLASH_ATTENTION
from components.models.attention_backend import is_usable
from components.models.packed_attention import conversations_apart
from components.models.precision import computing
from components.training.loss import ScoredModel
from experiments.benchmarks.gpu_kit.cases import Case
from experiments.benchmarks.gpu_kit.checks import Check, passed_if, skipped
from experiments.benchmarks.gpu_kit.part_process import line_of
from experiments.benchmarks.gpu_kit.rows import random_dataset
from experiments.benchmarks.gpu_kit.settings import Settings
from experiments.benchmarks.gpu_kit.shapes import few_layers, random_model

# A packed row is computed with a mask and a conversation alone without one, perhaps by another kernel: other sums of up to
# 14,000 products in fp32, and in bf16 other roundings of every layer's output. A neighbor that is seen changes logits by a
# third.
APART = {"fp32": 1e-4, "bf16": 0.03}
# What torch and cuDNN say of a kernel that does not compute such inputs.
UNFIT = "No available kernel|No viable backend|No valid execution plan|cuDNN Frontend error"
SAYS = {True: "separate", False: "not separate"}
LENGTHS = (24, 40, 64)  # multiples of 8: a conversation alone has no padding, and needs no mask
SECONDS, FLEX_SECONDS = 3.0, 40.0  # flex attention is compiled first, for each length


@dataclass(frozen=True, slots=True)
class Way:
    """An attention of transformers, with one of torch's kernels for sdpa, or the one that torch chooses.

    apart: conversation by conversation instead of with a mask.
    """

    attention: str
    precision: str
    kernel: SDPBackend | None = None
    apart: bool = False

    def __str__(self) -> str:
        kernel = f" by {self.kernel.name}" if self.kernel else ""
        return f"{self.attention}{kernel}{', apart' if self.apart else ''}, {self.precision}"


USUAL = [
    Way("sdpa", "bf16", apart=True), Way("sdpa", "fp32"), Way("sdpa", "bf16"), Way("eager", "fp32"), Way("eager", "bf16")
]  # fmt: skip
FLASH = Way(FLASH_ATTENTION, "bf16")
KERNELS = [
    *(Way("sdpa", "fp32", kernel) for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)),
    *(
        Way("sdpa", "bf16", kernel)
        for kernel in (
            SDPBackend.FLASH_ATTENTION,
            SDPBackend.EFFICIENT_ATTENTION,
            SDPBackend.CUDNN_ATTENTION,
            SDPBackend.MATH,
        )
    ),
]
FLEX = Way("flex_attention", "fp32")


def isolation_cases(settings: Settings) -> Iterator[Case]:
    for name, ways in (("llama-1b", [*USUAL, FLASH, *KERNELS]), ("chatglm3-6b", [*USUAL, FLASH])):
        store = _conversations(name, settings, "isolation")
        for way in ways:
            yield f"{name}, {way}", partial(isolation, name, way, store, settings), SECONDS


def flex_cases(settings: Settings) -> Iterator[Case]:
    for name in ("llama-1b", "chatglm3-6b"):
        store = _conversations(name, settings, "flex")
        yield f"{name}, {FLEX}", partial(isolation, name, FLEX, store, settings), FLEX_SECONDS


def isolation(name: str, way: Way, store: TokenStore, settings: Settings) -> Iterator[Check]:
    bound = APART[way.precision]
    asked = f"{name}, {way}: packed conversations do not see each other (logits within {bound:g} of those alone)"
    if reason := _why_not(way, settings):
        yield skipped(asked, reason)
        return
    model = random_model(few_layers(name, settings), settings.device, dtype=way.precision, attention=way.attention)
    try:
        with _kernel(way):
            apart, isolates = _seen(model, store, way, settings)
            with _without_positions(model):  # apart, each conversation has a past of its own all the same
                leak, leak_isolates = (torch.inf, False) if way.apart else _seen(model, store, way, settings)
    except Exception as error:
        if not _is_unfit(way, error):
            raise
        yield skipped(asked, f"not for these rows on this device: {line_of(error)}")
        return
    seen = f"{apart:.1e}, the probe says {SAYS[isolates]}"
    seen += "" if way.apart else f"; without positions {leak:.2f}, it says {SAYS[leak_isolates]}"
    holds = apart <= bound and isolates and leak > bound and not leak_isolates
    figures = {"logits_relative": apart} | ({} if way.apart else {"logits_relative_of_a_leak": leak})
    yield passed_if(holds, asked, seen, **figures)


def _seen(model: PreTrainedModel, store: TokenStore, way: Way, settings: Settings) -> tuple[float, bool]:
    """Returns how far packed logits are from those alone, and what the product's probe says before it trains on such rows."""
    scored = ScoredModel(model, precision=way.precision, attention=way.attention, device=settings.device)
    return distance_from_alone(model, store, way, settings.device), scored.isolates_packed_rows(way.apart)


def _why_not(way: Way, settings: Settings) -> str:
    """Why it cannot be tried at all; "" if it can."""
    if not is_usable(way.attention):
        return "no package flash-attn here, or no GPU that it supports"
    if way.attention == FLEX.attention and not settings.on_gpu:
        return "flex attention compiles kernels for a GPU; the product does not offer it"
    return ""


def _is_unfit(way: Way, error: Exception) -> bool:
    """Whether this kernel does not compute such rows, so that torch would choose another one."""
    if way.attention == FLEX.attention:
        return True  # whatever ends its compiler: no trial can ask for it
    return way.kernel is not None and re.search(UNFIT, str(error)) is not None


@torch.no_grad()
def distance_from_alone(model: PreTrainedModel, store: TokenStore, way: Way, device: torch.device) -> float:
    """Returns the largest |difference| / |logits| of a conversation, in a packed row and in a row of its own."""

    def logits(row: tuple[int, ...]) -> Tensor:
        batch = collate(store, [row], 0).to(device)
        inputs = model_inputs(batch, way.attention)
        apart = way.apart and batch.has_restarts
        within = conversations_apart(model, batch.lengths, device) if apart else contextlib.nullcontext()
        with computing(way.precision, device), within:
            answer: Tensor = model(**inputs, use_cache=False).logits[0].float()
        return answer

    packed = logits(tuple(range(len(store)))).split([int(length) for length in store.lengths])
    alone = [logits((index,)) for index in range(len(store))]
    return max(float((one - other).norm() / other.norm()) for one, other in zip(packed, alone, strict=True))


@contextlib.contextmanager
def _without_positions(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model is not given positions, from which it would know where a conversation begins."""

    def drop_positions(_: Any, args: Any, inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**inputs, "position_ids": None}

    hook = model.register_forward_pre_hook(drop_positions, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _kernel(way: Way) -> contextlib.AbstractContextManager[Any]:
    return contextlib.nullcontext() if way.kernel is None else sdpa_kernel(way.kernel)


def _conversations(name: str, settings: Settings, folder: str) -> TokenStore:
    vocabulary = few_layers(name, settings).vocab_size
    return random_dataset(settings.scratch / f"{folder}-{name}", vocabulary, train=LENGTHS, evaluate=[8]).train
