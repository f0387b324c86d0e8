"""The random numbers that a trial draws in a step, whatever other trials draw in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor


class RandomNumbers:
    """They go on from where torch's own generator of the device stands when this is made."""

    def __init__(self, device: torch.device, *, drawn_again: bool = False) -> None:
        """`drawn_again`: layers are computed again in the backward pass, and must draw what they drew before."""
        self._device, self._drawn_again = device, drawn_again
        self._state = self._read()
        self._before: dict[int, Tensor] = {}  # a draw: the state that it began with

    @contextlib.contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, torch draws these. Afterwards its generator stands where it stood."""
        again = self._begin_draw() if self._drawn_again else None
        outside = self._read()
        self._set(self._state if again is None else again)
        try:
            yield
        finally:
            if again is None:
                self._state = self._read()
            self._set(outside)

    def _begin_draw(self) -> Tensor | None:
        """Returns the state before this draw if it was drawn already.

        A layer that is computed again finds the generator as it was, so that names the draw by the same number.
        """
        draw = int(torch.randint(2**62, ()))
        if draw in self._before:
            return self._before[draw]
        self._before[draw] = self._state
        return None

    def _read(self) -> Tensor:
        return torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else torch.get_rng_state()

    def _set(self, state: Tensor) -> None:
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(state, self._device)
        else:
            torch.set_rng_state(state)
