"""The parts of the kit, in the order of their worth: what a first run on a GPU should tell first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import cast

from experiments.benchmarks.gpu_kit.checks import Check
from experiments.benchmarks.gpu_kit.settings import Settings

Run = Callable[[Settings], Iterator[Check]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`share` is of the time that is left, beside the shares of the parts that follow."""

    name: str
    question: str
    share: float

    def load(self) -> Run:
        """The part's code; a part that cannot be imported does not keep the others from running."""
        return cast(Run, import_module(f"experiments.benchmarks.gpu_kit.{self.name}").run)


PARTS = {
    part.name: part
    for part in (
        Part(name="equality", question="Does a step on this device do what it does on the CPU?", share=2.0),
        Part(name="memory", question="Does the plan say how much memory a trial takes?", share=2.0),
        Part(name="search", question="Does a whole search run on this machine, to its champion?", share=3.0),
        Part(name="slot", question="Does one trial after another leave the slot as it was?", share=1.0),
        Part(name="speed", question="How fast is a step, and beside what others make of the same rows?", share=3.0),
        Part(name="chatglm3", question="Does ChatGLM3 convert, train, save, load and talk?", share=1.5),
        Part(name="shard", question="Do the collectives and sharded weights work on this device?", share=1.0),
        Part(name="proof", question="Does the proof of a full winner stay within one model's memory?", share=1.0),
    )
}
