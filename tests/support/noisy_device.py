"""A device whose passes differ in the last bit, as a GPU's do: sums in another order, kernels for other shapes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_map


@contextlib.contextmanager
def last_bit_noise(seed: int = 0, units: int = 1) -> Iterator[None]:
    """Inside, each number that a module returns is moved at random: by one unit in its last place, or not at all.

    No pass repeats another one's moves. Whoever watches torch's operations does not see them, and gradients pass through.

    Args:
        units: the moves are so many units, for a device that rounds worse.
    """
    generator = torch.Generator().manual_seed(seed)

    def move(module: Any, args: Any, answer: Any) -> Any:
        with _disable_current_modes():
            return tree_map(lambda leaf: _moved(leaf, generator, units), answer)

    handle = register_module_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()


def _moved(leaf: Any, generator: torch.Generator, units: int) -> Any:
    if not isinstance(leaf, Tensor) or isinstance(leaf, FakeTensor) or not leaf.is_floating_point():
        return leaf
    start = end = leaf.detach()
    moves = torch.randint(-1, 2, leaf.shape, generator=generator)
    towards = (moves.to(leaf.dtype) * torch.inf).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    for _ in range(units):
        end = torch.where(moves == 0, end, torch.nextafter(end, towards))
    return leaf + (end - start)
