"""Copies to the CPU that arrive late, as a GPU's do: `non_blocking=True` returns before the numbers are there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


class LateCopies:
    """Inside, a copy to the CPU that does not block holds NaN until an event that was recorded after it is waited for.

    Memory is the CPU's once it has been pinned, else it counts as a device's: there is no other device here. So a copy of
    pinned memory goes to the device, and is as usual.

    Args:
        arrive: without it, nobody waits for events, and no copy ever arrives.
    """

    def __init__(self, *, arrive: bool = True) -> None:
        self.arrive, self.made = arrive, 0
        self._on_the_way: list[tuple[Tensor, Tensor]] = []
        self._pinned: dict[int, Tensor] = {}
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> "LateCopies":
        # Methods of the class, not a mode of torch: no mode is active in hooks that run in a backward pass.
        self._patch.setattr(torch.Tensor, "to", self._instead_of(torch.Tensor.to, source=0))
        self._patch.setattr(torch.Tensor, "copy_", self._instead_of(torch.Tensor.copy_, source=1))
        self._patch.setattr(torch.Tensor, "pin_memory", lambda tensor: self._pin(tensor))
        self._patch.setattr(torch.Tensor, "is_pinned", lambda tensor: self._is_pinned(tensor))
        self._patch.setattr(torch.cpu.Stream, "record_event", lambda *_: _Event(self))
        self._patch.setattr(torch.cpu, "synchronize", lambda *_: self.wait())
        return self

    def __exit__(self, *error: Any) -> None:
        self._patch.undo()

    def wait(self) -> None:
        """Waits for all copies so far."""
        arrived, self._on_the_way = self._on_the_way, []
        for copy, numbers in arrived:
            if self.arrive:
                copy.copy_(numbers)

    def _instead_of(self, copy: Callable[..., Tensor], source: int) -> Callable[..., Tensor]:
        def late(*args: Any, **named: Any) -> Tensor:
            arrived = copy(*args, **named)
            if not named.get("non_blocking") or self._is_pinned(args[source]):
                return arrived
            numbers = arrived.clone()
            result = numbers.clone() if copy.__name__ == "to" else arrived
            result.fill_(torch.nan if result.is_floating_point() else -1)
            self._on_the_way.append((result, numbers))
            self.made += 1
            return result

        return late

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned[_memory(tensor)] = tensor
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return _memory(tensor) in self._pinned


class _Event:
    def __init__(self, copies: LateCopies) -> None:
        self._copies = copies

    def synchronize(self) -> None:
        self._copies.wait()


def _memory(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
