"""Counts the copies of weights that autocast makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts how often a weight of a model is copied to another dtype."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.count = {id(weight) for weight in model.parameters()}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._to_copy.default and id(args[0]) in self.weights
        return func(*args, **(kwargs or {}))
