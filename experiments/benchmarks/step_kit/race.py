"""Contestants take turns by blocks of a few steps, so that whatever the machine does meanwhile hits all of them alike."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

from experiments.benchmarks.step_kit.contestants import YARDSTICK, Ended, Failed, enter
from experiments.benchmarks.step_kit.turns import Block
from experiments.benchmarks.step_kit.works import Work

WARM_UP = 2  # steps: kernels are chosen, memory is mapped
LONGEST_TURN = 300.0  # seconds, after which a process is taken for dead


@dataclass(slots=True)
class Race:
    """What was seen: `warm_up` by contestant, `rounds` with a block of each, and peaks in bytes. `lost` has reasons."""

    warm_up: dict[str, Block] = field(default_factory=dict)
    rounds: list[dict[str, Block]] = field(default_factory=list)
    peaks: dict[str, int] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)

    def blocks(self, name: str) -> list[Block]:
        return [blocks[name] for blocks in self.rounds]

    def losses(self, name: str) -> list[float]:
        return [loss for block in (self.warm_up[name], *self.blocks(name)) for loss in block.losses]


def run_race(work: Work, names: Sequence[str], *, rounds: int, seconds: float) -> Race:
    """Ends after `rounds`, or before the next one would take longer than until `seconds` have passed."""
    began, race = time.monotonic(), Race()
    with _Processes(work, names, race) as processes:
        for name in list(processes.running):
            processes.take_turn(name, WARM_UP, race.warm_up)
        longest = 0.0
        for number in range(rounds):
            started = time.monotonic()
            if number and started - began + longest > seconds:
                break
            blocks: dict[str, Block] = {}
            for name in _rotated(list(processes.running), number):
                processes.take_turn(name, 1 if name == YARDSTICK else work.steps_per_block, blocks)
            race.rounds.append(blocks)
            longest = max(longest, time.monotonic() - started)
        for name in list(processes.running):
            processes.end(name)
    for name in race.lost:  # what it did before it was lost is compared with nothing
        for blocks in race.rounds:
            blocks.pop(name, None)
    return race


def steps_needed(rounds: int, steps_per_block: int) -> int:
    return WARM_UP + rounds * steps_per_block + 1  # one that nobody makes: transformers ends by itself after the last


def _rotated(names: list[str], number: int) -> Iterator[str]:
    for place in range(len(names)):
        yield names[(place + number) % len(names)]


class _Processes:
    """One a contestant, from entering the context until it is left."""

    def __init__(self, work: Work, names: Sequence[str], race: Race) -> None:
        self.work, self.names, self.race = work, names, race
        self.running: dict[str, Connection] = {}
        self.processes: list[BaseProcess] = []

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("spawn")  # no library is there before its import is counted
        for name in self.names:
            here, there = context.Pipe()
            self.processes.append(context.Process(target=enter, args=(there, name, self.work), daemon=True))
            self.processes[-1].start()
            there.close()
            self.running[name] = here
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def take_turn(self, name: str, steps: int, blocks: dict[str, Block]) -> None:
        answer = self._ask(name, steps)
        if isinstance(answer, Block):
            blocks[name] = answer

    def end(self, name: str) -> None:
        answer = self._ask(name, 0)
        if isinstance(answer, Ended):
            self.race.peaks[name] = answer.peak_bytes

    def _ask(self, name: str, steps: int) -> Any:
        """A contestant that fails, dies or hangs is lost, and the others go on."""
        pipe = self.running[name]
        with contextlib.suppress(OSError):  # it may have failed before, and said why
            pipe.send(steps)
        try:
            answer = pipe.recv() if pipe.poll(LONGEST_TURN) else Failed(reason=f"no answer for {LONGEST_TURN:.0f} s")
        except (EOFError, OSError):
            answer = Failed(reason="its process died")
        if isinstance(answer, Failed):
            self.race.lost[name] = answer.reason
            del self.running[name]
        return answer
