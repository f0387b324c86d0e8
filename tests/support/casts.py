"""Counts the copies of weights that autocast makes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Casts(TorchDispatchMode):
    """Counts how often weights of a model are copied to another dtype, and how many of them are."""

    def __init__(self, model):
        super().__init__()
        self.weights, self.count, self.copied = {id(weight) for weight in model.parameters()}, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and id(args[0]) in self.weights:
            self.count += 1
            self.copied.add(id(args[0]))
        return func(*args, **(kwargs or {}))
