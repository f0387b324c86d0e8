"""Finds the parameters that text does not reach. Towers for images or sound get no gradient from a batch of text.

They are neither trained nor adapted: DistributedDataParallel waits for the gradient of every trainable parameter. Nothing
here depends on an architecture: the autograd graph of a forward pass on fake tensors is followed back from the logits.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedConfig, PreTrainedModel

from components.models.meta_tensors import empty_model, replace_tensors

NUM_TOKENS = 4
_unreached_by_config: dict[str, frozenset[str]] = {}  # cache by configuration: every trial needs it


def unreached_parameters(config: PreTrainedConfig) -> frozenset[str]:
    """Returns the names of parameters on which the logits of a text do not depend.

    Returns none if the model's code depends on values of tensors and cannot run without weights (some experts' code).
    """
    key = config.to_json_string(use_diff=False)
    if key not in _unreached_by_config:
        _unreached_by_config[key] = _find_unreached(config)
    return _unreached_by_config[key]


def train_what_text_reaches(base: PreTrainedModel) -> None:
    """Makes every weight trainable, except those that no text reaches."""
    unreached = unreached_parameters(base.config)
    for name, parameter in base.named_parameters():
        parameter.requires_grad_(name not in unreached)


def unreached_modules(base: PreTrainedModel) -> list[str]:
    """Returns the names of modules without a parameter that text reaches, and of the modules inside them."""
    unreached = unreached_parameters(base.config)
    if not unreached:
        return []
    return [name for name, module in base.named_modules() if name and _is_unreached(name, module, unreached)]


def unreached_towers(base: PreTrainedModel) -> list[str]:
    """Returns the outermost of unreached_modules, e.g. a vision tower and its projector."""
    names = unreached_modules(base)
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _is_unreached(name: str, module: nn.Module, unreached: frozenset[str]) -> bool:
    inside = [f"{name}.{each}" for each, _ in module.named_parameters()]
    return bool(inside) and unreached.issuperset(inside)


def _find_unreached(config: PreTrainedConfig) -> frozenset[str]:
    plain = copy.deepcopy(config)
    if hasattr(plain, "quantization_config"):
        del plain.quantization_config  # the config of a base that was quantized during loading
    model = empty_model(plain, dtype=torch.bfloat16, attention="eager").eval()
    model.requires_grad_(True)
    try:
        with FakeTensorMode(), torch.device("cpu"), torch.enable_grad():
            replace_tensors(model, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
            token_ids_BT = torch.zeros(1, NUM_TOKENS, dtype=torch.int64)
            reached = {id(leaf) for leaf in _leaves(model(input_ids=token_ids_BT, use_cache=False).logits.grad_fn)}
            return frozenset(name for name, parameter in model.named_parameters() if id(parameter) not in reached)
    except RuntimeError:  # torch raises this if the code depends on values of tensors
        return frozenset()


def _leaves(root: Any) -> Iterator[torch.Tensor]:
    """Yields the parameters at the leaves of an autograd graph."""
    seen, waiting = {root}, [root]
    while waiting:
        node = waiting.pop()
        if hasattr(node, "variable"):
            yield node.variable
        following = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= following
        waiting.extend(following)
