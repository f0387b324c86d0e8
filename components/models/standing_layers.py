"""Layers that stand in a model for a while, in the place of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from torch import nn


@contextlib.contextmanager
def standing(model: nn.Module, layers: Mapping[str, nn.Module]) -> Iterator[None]:
    """Inside, these layers stand at their names in the model; outside, what stood there before."""
    before = {name: model.get_submodule(name) for name in layers}
    put_in(model, layers)
    try:
        yield
    finally:
        put_in(model, before)


def put_in(model: nn.Module, layers: Mapping[str, nn.Module]) -> None:
    for name, layer in layers.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, layer)
