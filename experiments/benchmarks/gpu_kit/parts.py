"""The parts of the kit, in the order of their worth: what a first run on a GPU should tell first."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """`share` is of the time that is left, beside the shares of the parts that follow. `package` holds the part's module."""

    name: str
    question: str
    share: float
    package: str = "experiments.benchmarks.gpu_kit"

    @property
    def module(self) -> str:
        """It has a function `run(settings)`, which yields checks."""
        return f"{self.package}.{self.name}"


PARTS = {
    part.name: part
    for part in (
        Part(name="equality", question="Does a step on this device do what it does on the CPU?", share=2.0),
        Part(name="memory", question="Does the plan say how much memory a trial takes?", share=2.0),
        Part(name="search", question="Does a whole search run on this machine, to its champion?", share=4.0),
        Part(name="slot", question="Does one trial after another leave the slot as it was?", share=1.0),
        Part(name="speed", question="How fast is a step, and beside what others make of the same rows?", share=3.0),
        Part(name="chatglm3", question="Does ChatGLM3 convert, train, save, load and talk?", share=1.5),
        Part(name="shard", question="Do the collectives and sharded weights work on this device?", share=1.0),
        Part(name="proof", question="Does the proof of a full winner stay within one model's memory?", share=1.0),
    )
}
