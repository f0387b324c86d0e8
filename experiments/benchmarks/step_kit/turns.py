"""A contestant's side of a race: it makes steps when it is its turn, and says how long they took."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Some steps in a row: seconds by the clock and of the process's CPU time, and each step's loss in nats per target."""

    seconds: float
    cpu_seconds: float
    losses: tuple[float, ...]


class Turns:
    """Who holds the other end sends how many steps to make, gets a Block, and sends 0 in the end."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self._left = 0
        self._losses: list[float | Tensor] = []
        self._began = self._began_cpu = 0.0

    def __iter__(self) -> Iterator[int]:
        """Yields the number of each step to make, for loops that call `made` after it."""
        number, going_on = 0, self.wait()
        while going_on:
            yield number
            number, going_on = number + 1, self._left > 0

    def wait(self) -> bool:
        """Waits for the turn to come. Returns False if there is none any more."""
        self._left = self.pipe.recv()
        self._losses = []
        self._began, self._began_cpu = time.perf_counter(), time.process_time()
        return self._left > 0

    def made(self, losses: Sequence[float | Tensor]) -> bool:
        """A step has been made, whose loss is the sum of these. Returns False if it was the last one of all."""
        self._losses.append(sum(losses))
        self._left -= 1
        if self._left:
            return True
        seconds, cpu_seconds = time.perf_counter() - self._began, time.process_time() - self._began_cpu
        self.pipe.send(Block(seconds=seconds, cpu_seconds=cpu_seconds, losses=tuple(map(float, self._losses))))
        return self.wait()
