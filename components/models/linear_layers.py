"""What `target_modules: all-linear` takes of a model: its linear layers and experts, as far as an adapter can reach them."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import cast

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers, get_model_conversion_mapping
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

QUANTIZED = "beside experts they are adapted as whole parameters, and these are quantized"
# A weight that is used in a computation, not looked at or initialized. Bloom uses slices of one where it imitates a training
# over several devices, which no release asks for.
READ = re.compile(r"self\.(\w+)\.weight\b(?!\[|\.(?:data|dtype|device|shape|size|requires_grad)\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearLayers:
    """Beside peft's own choice: `excluded` modules, and `parameters` that are adapted as whole parameters.

    `left_out` has the last part of the names of linear layers without an adapter, each with the reason.
    """

    excluded: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)


def all_linear(base: PreTrainedModel, config: LoraConfig, *, quantized: bool) -> LinearLayers:
    """Returns what `all-linear` needs beside peft's own choice; `config` is that choice, with all modules to exclude.

    peft's list of linear layers has modules that compute something else (a router that chooses), and those whose class
    reads their weight and never calls them: an adapter there would break, or learn nothing. It misses experts, which are
    parameters of three dimensions, and where it has a list of a family's experts, dense layers with their names.
    """
    unfit = {**_other_modules(base), **_bypassed(base)}
    outside = (*(config.exclude_modules or ()), *unfit)
    chosen = copy.deepcopy(config)
    convert_peft_config_for_transformers(chosen, base, get_model_conversion_mapping(base))
    left_out = {_leaf(name): reason for name, reason in unfit.items()}
    if not chosen.target_parameters:
        experts = tuple(name for name in _experts(base) if not name.startswith(tuple(f"{each}." for each in outside)))
        return LinearLayers(excluded=tuple(unfit), parameters=experts, left_out=left_out)
    missed = [name for name in _linear(base) if name not in outside and _leaf(name) not in chosen.target_modules]
    if quantized:
        left_out |= {_leaf(name): QUANTIZED for name in missed}
        missed = []
    parameters = (*chosen.target_parameters, *(f"{name}.weight" for name in missed)) if missed else ()
    return LinearLayers(excluded=tuple(unfit), parameters=parameters, left_out=left_out)


def reader_of(base: nn.Module, name: str) -> str:
    """Returns the class that reads a module's weight instead of calling the module; empty if there is none."""
    parent, _, leaf = name.rpartition(".")
    kind = type(base.get_submodule(parent))
    return kind.__name__ if leaf in _read_weights(cast(Hashable, kind)) else ""


def _linear(base: PreTrainedModel) -> Iterator[str]:
    head = base.get_output_embeddings()
    for name, module in base.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and module is not head:
            yield name


def _experts(base: PreTrainedModel) -> Iterator[str]:
    for name, module in base.named_modules():
        if "expert" in f"{name} {type(module).__name__}".lower():
            yield from (
                f"{name}.{each}" for each, weight in module.named_parameters(recurse=False) if weight.dim() == 3
            )


def _other_modules(base: PreTrainedModel) -> dict[str, str]:
    """Returns the modules of a class that extends linear layers, and does something else with its input."""
    modules = {name: base.get_submodule(name) for name in _linear(base)}
    return {
        name: f"a {type(module).__name__} is no linear layer"
        for name, module in modules.items()
        if type(module).__module__.startswith("transformers.models.") and not _is_linear(module)
    }


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    weight: Tensor = module.weight  # type: ignore[assignment]
    answer = module(torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device))
    return isinstance(answer, Tensor) and answer.shape == (1, weight.shape[0])


def _bypassed(base: PreTrainedModel) -> dict[str, str]:
    readers = {name: reader_of(base, name) for name in _linear(base)}
    return {name: f"a {reader} reads their weights itself" for name, reader in readers.items() if reader}


@cache
def _read_weights(kind: Hashable) -> frozenset[str]:
    """Returns the names of modules whose weights the code of a class uses, in any of its ways to compute."""
    assert isinstance(kind, type)
    if not kind.__module__.startswith("transformers.models."):
        return frozenset()
    lines = inspect.getsource(kind).splitlines()
    return frozenset(name for line in lines if "init." not in line for name in READ.findall(line))


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
