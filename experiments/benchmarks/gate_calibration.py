"""How often the gate promotes a candidate that is no better, and how often one that is: before and after the correction.

    python experiments/benchmarks/gate_calibration.py --write experiments/benchmarks/gate_calibration.md

Each case simulates searches whose candidates are all exactly as good as the opponent, and counts those that end in a
promotion: at most 2.5 % at a confidence of 95 %. `before` is the gate as it was: the evaluation split chooses the best
candidate, and its studentized bootstrap interval is that of one comparison. It takes some 20 minutes on one core.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TypeVar

import numpy as np

from components.statistics.no_worse import no_worse
from components.statistics.paired_bootstrap import LEAST, number_needed
from components.statistics.paired_interval import PairedDifferences, paired_interval, resampled

CONFIDENCE, WRONG = 0.95, 0.025
RESAMPLES, SAMPLES = 499, 2000  # of an interval (the gate draws 10,000), and searches of a case
COUNTS, CANDIDATES = (30, 100, 500), (1, 8, 24, 96)
SHARED, CHECKPOINTS = 0.5, 4  # the variance that candidates share; evaluations of a trial
HERE = "experiments/benchmarks/gate_calibration"

Line = TypeVar("Line", "Measured", "PowerLine", "MarginLine")
Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
SHAPES: dict[str, Draw] = {
    "normal": lambda generator, shape: generator.normal(size=shape),
    "heavy tails (t, 3 degrees)": lambda generator, shape: generator.standard_t(3, size=shape) / math.sqrt(3),
    "a few much better (exponential)": lambda generator, shape: generator.exponential(size=shape) - 1,
    "a few much worse (exponential)": lambda generator, shape: 1 - generator.exponential(size=shape),
    "right or wrong (coin flips)": lambda generator, shape: generator.integers(2, size=shape).astype(float),
    "rare disasters (lognormal)": lambda generator, shape: (1.6487 - generator.lognormal(size=shape)) / 2.1612,
}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """`spread` is that of the logarithm of lengths: 0.4 as the quickstart's. `worse` is by how much three in four are."""

    shape: str
    spread: float
    worse: float = 0.0
    counts: tuple[int, ...] = COUNTS

    @property
    def words(self) -> str:
        lengths = {0.0: "equal lengths", 0.4: "lengths as the quickstart's", 1.0: "very unequal lengths"}[self.spread]
        return f"{self.shape}, {lengths}" + (f", three in four candidates worse by {self.worse}" if self.worse else "")


NORMAL, HEAVY, BETTER, WORSE, COIN, DISASTERS = SHAPES
SCENARIOS = (
    *(Scenario(shape=shape, spread=0.4) for shape in (NORMAL, HEAVY, BETTER, WORSE)),
    *(Scenario(shape=shape, spread=1.0) for shape in (HEAVY, WORSE)),
    Scenario(shape=WORSE, spread=0.0, counts=(LEAST, 30)),
    Scenario(shape=COIN, spread=0.0),
    Scenario(shape=NORMAL, spread=0.4, worse=0.3, counts=(100,)),
)
BEYOND = Scenario(shape=DISASTERS, spread=0.4)  # more than it holds for


@dataclass(frozen=True, kw_only=True)
class Case:
    """`nested`: the candidates are trials of CHECKPOINTS evaluations each, which are more alike than two trials."""

    scenario: Scenario
    count: int
    candidates: int
    nested: bool = False

    @property
    def words(self) -> str:
        return f"{self.candidates // CHECKPOINTS} x {CHECKPOINTS}" if self.nested else str(self.candidates)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Shares of the searches that end in a promotion."""

    case: Case
    samples: int
    before: float
    after: float

    @property
    def bound(self) -> float:
        """What a share that is truly 2.5 % exceeds by chance in one of 700 cases."""
        return WRONG + 3 * math.sqrt(WRONG * (1 - WRONG) / self.samples)

    def line(self) -> str:
        holds = "" if self.after <= self.bound else " **above**"
        return f"| {self.case.count} | {self.case.words} | {self.before:.1%} | {self.after:.1%}{holds} | {self.bound:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the tables, as Markdown")
    arguments = parser.parse_args()
    found = [shown(measured(case)) for scenario in SCENARIOS for case in cases_of(scenario)]
    beyond = [shown(measured(case)) for case in cases_of(BEYOND)]
    power = [shown(PowerLine.of(count, effect)) for count in COUNTS for effect in EFFECTS]
    margins = [shown(MarginLine.of(count, *rates)) for count in COUNTS for rates in RATES]
    if arguments.write:
        arguments.write.write_text(markdown(found, beyond, power, margins), encoding="utf-8")


def shown(line: Line) -> Line:
    print(line.line(), flush=True)
    return line


def cases_of(scenario: Scenario) -> Iterator[Case]:
    for count in scenario.counts:
        for candidates in CANDIDATES[1:] if scenario.worse else CANDIDATES:
            yield Case(scenario=scenario, count=count, candidates=candidates)
        yield Case(scenario=scenario, count=count, candidates=CANDIDATES[-1], nested=True)


def measured(case: Case, samples: int = SAMPLES) -> Measured:
    lengths_NS, better_NS = np.empty((case.count, samples)), np.empty((case.count, samples))
    for sample in range(samples):
        paired = best_first(drawn(case, generator_of(case, sample)))
        lengths_NS[:, sample], better_NS[:, sample] = paired.weights_N, paired.differences_NC[:, 0]
    enough_S = np.array([case.count >= number_needed(lengths_N) for lengths_N in lengths_NS.T])
    before = np.flatnonzero(enough_S & pass_before(better_NS, lengths_NS))
    # What passes now has passed before: the interval is wider.
    after = sum(passes(best_first(drawn(case, generator_of(case, int(sample))))) for sample in before)
    return Measured(case=case, samples=samples, before=len(before) / samples, after=after / samples)


def generator_of(case: Case, sample: int) -> np.random.Generator:
    scenario = case.scenario
    key = [case.count, case.candidates, case.nested, list(SHAPES).index(scenario.shape), int(10 * scenario.spread)]
    return np.random.default_rng([*key, sample])


def drawn(case: Case, generator: np.random.Generator) -> PairedDifferences:
    """One split: how much better each candidate is than the opponent on each conversation, 0 in the mean."""
    count, candidates, shape = case.count, case.candidates, SHAPES[case.scenario.shape]
    lengths_N = np.maximum(1.0, np.round(60 * generator.lognormal(0, case.scenario.spread, size=count)))
    if case.scenario.shape == COIN:
        opponent_N1, own_NC = shape(generator, (count, 1)), shape(generator, (count, candidates))
        if case.nested:  # half of a trial's answers stay as they were at its next evaluation
            first_NC = np.repeat(shape(generator, (count, candidates // CHECKPOINTS)), CHECKPOINTS, axis=1)
            own_NC = np.where(generator.random((count, candidates)) < 0.5, first_NC, own_NC)
        return PairedDifferences(own_NC - opponent_N1, np.ones(count))
    shared = SHARED if candidates > 1 else 0.0  # one alone has the shape itself, and all its skewness
    of_trials = 0.6 * (1 - SHARED) if case.nested else 0.0
    better_NC = math.sqrt(1 - shared - of_trials) * shape(generator, (count, candidates))
    better_NC += math.sqrt(shared) * shape(generator, (count, 1))
    if case.nested:
        trials_NC = np.repeat(shape(generator, (count, candidates // CHECKPOINTS)), CHECKPOINTS, axis=1)
        better_NC += math.sqrt(of_trials) * trials_NC
    better_NC -= np.where(np.arange(candidates) % 4 > 0, case.scenario.worse, 0.0)
    return PairedDifferences(better_NC * lengths_N[:, None], lengths_N)


def best_first(paired: PairedDifferences) -> PairedDifferences:
    best = int(paired.ratios.argmax())
    return paired.columns(np.array([best, *(each for each in range(len(paired.ratios)) if each != best)]))


def passes(paired: PairedDifferences) -> bool:
    return paired_interval(paired, CONFIDENCE, resamples=RESAMPLES)[0] > 0


def pass_before(better_NS: np.ndarray, lengths_NS: np.ndarray) -> np.ndarray:
    """By the studentized bootstrap alone, of the best candidate as if it were the only one; shape (S,), of searches."""
    (counts_BN,) = resampled(len(better_NS), np.random.default_rng(0), RESAMPLES)
    factor, totals_S = len(better_NS) / (len(better_NS) - 1), lengths_NS.sum(axis=0)
    ratios_S = better_NS.sum(axis=0) / totals_S
    missed_NS = better_NS - ratios_S * lengths_NS
    errors_S = np.sqrt(factor * (missed_NS**2).sum(axis=0)) / totals_S
    totals_BS = counts_BN @ lengths_NS
    shifts_BS = (counts_BN @ missed_NS) / totals_BS
    squares_BS = counts_BN @ missed_NS**2 - 2 * shifts_BS * (counts_BN @ (missed_NS * lengths_NS))
    squares_BS += shifts_BS**2 * (counts_BN @ lengths_NS**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        deviations_BS = np.nan_to_num(shifts_BS * totals_BS / np.sqrt(factor * np.maximum(squares_BS, 0.0)), nan=0.0)
    ends_S = np.partition(deviations_BS, position := math.ceil((1 - WRONG) * RESAMPLES) - 1, axis=0)[position]
    return np.asarray(ratios_S > ends_S * errors_S)


# Power

EFFECTS, POWER_SAMPLES = (0.02, 0.05, 0.1, 0.2), 400
PAIRED_SPREAD = 0.5  # of differences between two models on a conversation, in spreads of the loss over conversations


@dataclass(frozen=True, kw_only=True)
class PowerLine:
    """Shares of searches that promote a candidate that is better by `effect`, with a verdict split and without one."""

    count: int
    effect: float
    verdict: float
    corrected: tuple[float, ...]

    @classmethod
    def of(cls, count: int, effect: float, samples: int = POWER_SAMPLES) -> PowerLine:
        shares = [power(count, effect, candidates, samples) for candidates in CANDIDATES]
        return cls(count=count, effect=effect, verdict=shares[0], corrected=tuple(shares[1:]))

    def line(self) -> str:
        shares = " | ".join(f"{share:.0%}" for share in (self.verdict, *self.corrected))
        return f"| {self.count} | {self.effect} | {shares} |"


def power(count: int, effect: float, candidates: int, samples: int) -> float:
    """All candidates are better by the effect. One candidate is as many with a verdict split, which chose nothing."""
    case = Case(scenario=Scenario(shape=NORMAL, spread=0.4), count=count, candidates=candidates)
    generator = np.random.default_rng([count, candidates, int(1000 * effect)])
    passed = 0
    for _ in range(samples):
        paired = drawn(case, generator)
        shift_N1 = effect / PAIRED_SPREAD * paired.weights_N[:, None]
        paired = best_first(PairedDifferences(paired.differences_NC + shift_N1, paired.weights_N))
        passed += count >= number_needed(paired.weights_N) and passes(paired)
    return passed / samples


# No worse by more than a margin

MARGIN_SAMPLES = 2000
# (margin, share of conversations on which the candidate alone is wrong, on which the other alone is): as bad as the margin.
RATES = ((0.02, 0.02, 0.0), (0.02, 0.07, 0.05), (0.1, 0.1, 0.0), (0.1, 0.15, 0.05))


@dataclass(frozen=True)
class Answers:
    """1 or 0 for each conversation."""

    sums: tuple[float, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Rightness:
    name: str = "exact_match"
    direction: str = "maximize"


@dataclass(frozen=True, kw_only=True)
class MarginLine:
    """`passed`: share of the candidates, worse by just the margin, that are found no worse; `proven`: of equal ones."""

    count: int
    margin: float
    worse: float
    better: float
    samples: int
    passed: float
    proven: float

    @classmethod
    def of(cls, count: int, margin: float, worse: float, better: float, samples: int = MARGIN_SAMPLES) -> MarginLine:
        generator = np.random.default_rng([count, int(1000 * worse), int(1000 * better)])
        passed, proven = (share_no_worse(generator, count, margin, worse, other, samples) for other in (better, worse))
        return cls(
            count=count, margin=margin, worse=worse, better=better, samples=samples, passed=passed, proven=proven
        )

    def line(self) -> str:
        return (
            f"| {self.count} | {self.margin} | {self.worse:.0%} | {self.better:.0%} | {self.passed:.1%} |"
            f" {self.proven:.1%} |"
        )


def share_no_worse(
    generator: np.random.Generator, count: int, margin: float, worse: float, better: float, samples: int
) -> float:
    ones = (1.0,) * count
    held = 0
    for _ in range(samples):
        draws_N = generator.random(count)
        candidate_N = (draws_N >= worse).astype(float)
        other_N = ((draws_N < worse) | (draws_N >= worse + better)).astype(float)
        found = no_worse(
            "base",
            Answers(tuple(candidate_N), ones),
            Answers(tuple(other_N), ones),
            Rightness(),
            margin=margin,
            confidence=CONFIDENCE,
            resamples=RESAMPLES,
        )
        held += found.holds
    return held / samples


# The page


HEAD = ("| conversations | candidates | before | after | bound |", "|---|---|---|---|---|")


def markdown(
    found: Sequence[Measured],
    beyond: Sequence[Measured],
    power: Sequence[PowerLine],
    margins: Sequence[MarginLine],
) -> str:
    lines = [
        "# How often the gate promotes what is no better, and what is",
        "",
        f"{date.today()}, {platform.machine()}, numpy {np.__version__}: {RESAMPLES:,} resamples an interval, fixed seeds,"
        f" confidence {CONFIDENCE:.0%}.",
        "",
        "All candidates are exactly as good as the opponent, and share half of the variance of the difference to it. The",
        "best one on the conversations is judged on the same ones, by the gate before (one studentized bootstrap) and after",
        "(corrected for the choice). 1 candidate is a search with a verdict split: it was chosen elsewhere, from whatever",
        "it was chosen. `bound` is 2.5 % and three standard errors of the simulation. Where lengths are very unequal, 30",
        "conversations are nearly always too few for a claim.",
    ]
    for scenario in dict.fromkeys(each.case.scenario for each in found):
        lines += ["", f"## {scenario.words[0].upper()}{scenario.words[1:]}", ""]
        lines += [*HEAD, *(each.line() for each in found if each.case.scenario == scenario)]
    worst = max(found, key=lambda each: each.after - each.bound)
    above = sum(each.after > each.bound for each in found)
    lines += [
        "",
        f"Of {len(found)} cases {above} lie above their bound. The one nearest to it has {worst.after:.1%}, where it was"
        f" {worst.before:.1%} before: {worst.case.scenario.words}, {worst.case.count} conversations, {worst.case.words}"
        " candidates.",
        "",
        f"## Where it may not hold: {BEYOND.words}",
        "",
        "One conversation in a hundred is worse by four spreads or more. Few conversations seldom hold one, and no method",
        "knows of what it has not seen.",
        "",
        *HEAD,
        *(each.line() for each in beyond),
        "",
        "## Power",
        "",
        "Share of searches that end in a promotion if all candidates are better by `effect`, in spreads of the loss over",
        f"conversations. The difference of two models on one conversation has a spread of {PAIRED_SPREAD} of that. Normal,"
        f" lengths as the quickstart's, {POWER_SAMPLES} searches a number (known to 5 %).",
        "",
        "The best of many that are all better is also a lucky one, and passes more often than one of them by itself. With a",
        "verdict split it is asked about that one by itself.",
        "",
        "| conversations | effect | verdict split | "
        + " | ".join(f"corrected, {candidates} candidates" for candidates in CANDIDATES[1:])
        + " |",
        "|---|---|---|" + "---|" * len(CANDIDATES[1:]),
        *(each.line() for each in power),
        "",
        "## No worse by more than a margin",
        "",
        "A metric that is right or wrong on a conversation. `wrong alone`: where the candidate is wrong and the other right;",
        "`right alone`: where it is right and the other wrong. So it is worse by the margin. `passed` of these are found",
        "no worse: at most 2.5 %. `shown` is that share if the two are wrong alone equally often,"
        f" {MARGIN_SAMPLES:,} simulations a number.",
        "",
        "| conversations | margin | wrong alone | right alone | passed | shown |",
        "|---|---|---|---|---|---|",
        *(each.line() for each in margins),
        "",
        f"Made by `python {HERE}.py --write {HERE}.md`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
