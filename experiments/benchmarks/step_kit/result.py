"""What a race says: ratios of blocks of the same round, memory, and whether all computed the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from components.experiment.spec import Dtype
from experiments.benchmarks.step_kit.contestants import OURS, YARDSTICK
from experiments.benchmarks.step_kit.race import WARM_UP, Race
from experiments.benchmarks.step_kit.turns import Block
from experiments.benchmarks.step_kit.works import StepSize
from experiments.benchmarks.step_kit.yardstick import FLOPS

# Sums in 16 bits in another order, and weights in 16 or 32 bits: of a step's some hundred losses.
SAME_LOSS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One contestant. Medians over blocks; `times`, `cpu_times`: how many times its seconds are those of ours.

    share: of the operations a second that a matrix product reached in the same rounds, by CPU time; None without it.
    loss_off: the largest relative difference of a step's loss from ours.
    """

    name: str
    seconds_per_step: float
    tokens_per_second: float
    tokens_per_cpu_second: float
    times: float
    cpu_times: float
    share: float | None
    peak_bytes: int
    loss_off: float

    @property
    def is_same_work(self) -> bool:
        return self.loss_off <= SAME_LOSS


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """lost: why others have no line. product_flops: operations in a CPU second, least and most of the rounds."""

    work: str
    precision: Dtype
    rounds: int
    steps_per_block: int
    tokens_per_step: float
    targets_per_step: float
    lines: tuple[Line, ...]
    lost: dict[str, str]
    product_flops: tuple[float, float] | None


def result_of(work: str, precision: Dtype, race: Race, sizes: Sequence[StepSize], steps_per_block: int) -> Result:
    """Raises ValueError if ours was lost, or nothing was measured."""
    if OURS in race.lost or not race.rounds:
        raise ValueError(f"{work}: {race.lost.get(OURS, 'no time was left for a round')}")
    measured = sizes[WARM_UP : WARM_UP + len(race.rounds) * steps_per_block]
    names = [name for name in race.peaks if name != YARDSTICK]
    products = [FLOPS / block.cpu_seconds for block in race.blocks(YARDSTICK)] if YARDSTICK in race.peaks else []
    return Result(
        work=work,
        precision=precision,
        rounds=len(race.rounds),
        steps_per_block=steps_per_block,
        tokens_per_step=sum(size.tokens for size in measured) / len(measured),
        targets_per_step=sum(size.targets for size in measured) / len(measured),
        lines=tuple(_line(name, race, list(_by_block(measured, steps_per_block)), products) for name in names),
        lost=dict(race.lost),
        product_flops=(min(products), max(products)) if products else None,
    )


def _line(name: str, race: Race, sizes: Sequence[StepSize], products: Sequence[float]) -> Line:
    """sizes: of whole blocks."""
    blocks, ours = race.blocks(name), race.blocks(OURS)
    cpu = [block.cpu_seconds for block in blocks]
    rates = [size.flops / spent for size, spent in zip(sizes, cpu, strict=True)]
    return Line(
        name=name,
        seconds_per_step=median(block.seconds / len(block.losses) for block in blocks),
        tokens_per_second=median(size.tokens / block.seconds for size, block in zip(sizes, blocks, strict=True)),
        tokens_per_cpu_second=median(size.tokens / spent for size, spent in zip(sizes, cpu, strict=True)),
        times=_ratio(blocks, ours, "seconds"),
        cpu_times=_ratio(blocks, ours, "cpu_seconds"),
        share=median(rate / most for rate, most in zip(rates, products, strict=True)) if products else None,
        peak_bytes=race.peaks[name],
        loss_off=max(abs(a / b - 1) for a, b in zip(race.losses(name), race.losses(OURS), strict=True)),
    )


def _ratio(blocks: Sequence[Block], ours: Sequence[Block], what: str) -> float:
    return median(getattr(a, what) / getattr(b, what) for a, b in zip(blocks, ours, strict=True))


def _by_block(sizes: Sequence[StepSize], steps_per_block: int) -> Iterator[StepSize]:
    for start in range(0, len(sizes), steps_per_block):
        block = sizes[start : start + steps_per_block]
        yield StepSize(
            tokens=sum(size.tokens for size in block),
            targets=sum(size.targets for size in block),
            flops=sum(size.flops for size in block),
        )
