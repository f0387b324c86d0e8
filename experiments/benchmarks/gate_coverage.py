"""How often the gate would promote a candidate that is no better, by number of held-out conversations.

    python experiments/benchmarks/gate_coverage.py --write experiments/benchmarks/gate_coverage.md

Each case draws SAMPLES held-out splits on which the difference per target of every conversation has a mean of exactly 0,
and counts those whose two-sided 95 % interval lies above 0: 2.5 % are right. Three bootstraps judge the same splits:
percentile, BCa (bias corrected and accelerated), and the gate's own, studentized. Targets are lognormal around 60.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import NormalDist

import numpy as np

from components.statistics.paired_bootstrap import LEAST, studentized_interval

SAMPLES, RESAMPLES, CONFIDENCE = 2000, 1000, 0.95
COUNTS = (2, 3, 5, 8, 10, 15, 20, 30, 50)
SPREADS = {0.0: "equal lengths", 0.4: "lengths about as the quickstart's", 1.0: "very unequal lengths"}
SHAPES: Mapping[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "normal": lambda generator, count: generator.normal(size=count),
    "heavy tails (t, 3 degrees)": lambda generator, count: generator.standard_t(3, size=count),
    "a few much better (exponential)": lambda generator, count: generator.exponential(size=count) - 1,
    "a few much worse (exponential)": lambda generator, count: 1 - generator.exponential(size=count),
}
METHODS = ("percentile", "BCa", "studentized")
HERE = "experiments/benchmarks/gate_coverage"
NORMAL = NormalDist()
TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """`promoted`: share of the splits in which each method finds a better candidate, though there is none."""

    spread: float
    shape: str
    count: int
    effective: float
    promoted: Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, metavar="FILE", help="the table, as Markdown")
    arguments = parser.parse_args()
    cases = []
    for spread in SPREADS:
        for count in COUNTS:
            for shape in SHAPES:
                cases.append(measured(spread, shape, count))
                print(line_of(cases[-1]), flush=True)
    if arguments.write:
        arguments.write.write_text(markdown(cases), encoding="utf-8")


def measured(spread: float, shape: str, count: int, samples: int = SAMPLES) -> Case:
    generator = np.random.default_rng([count, int(10 * spread), list(SHAPES).index(shape)])
    promoted = dict.fromkeys(METHODS, 0)
    effective = 0.0
    for _ in range(samples):
        targets = np.maximum(1.0, np.round(60 * generator.lognormal(0, spread, size=count)))
        differences = targets * SHAPES[shape](generator, count)
        for method, low in lows(differences, targets, generator).items():
            promoted[method] += low > 0
        effective += targets.sum() ** 2 / (targets**2).sum() / samples
    shares = {method: times / samples for method, times in promoted.items()}
    return Case(spread=spread, shape=shape, count=count, effective=effective, promoted=shares)


def lows(differences: np.ndarray, targets: np.ndarray, generator: np.random.Generator) -> dict[str, float]:
    """The lower end of each method's interval."""
    ratio = differences.sum() / targets.sum()
    drawn = generator.integers(len(targets), size=(RESAMPLES, len(targets)))
    ratios = np.sort(differences[drawn].sum(axis=1) / targets[drawn].sum(axis=1))
    return {
        "percentile": float(np.quantile(ratios, TAIL)),
        "BCa": float(ratios[int(RESAMPLES * _bca_tail(differences, targets, ratios, ratio))]),
        "studentized": studentized_interval(differences, targets, CONFIDENCE, generator, RESAMPLES)[0],
    }


def _bca_tail(differences: np.ndarray, targets: np.ndarray, ratios: np.ndarray, ratio: float) -> float:
    """Efron's quantile in place of TAIL; the acceleration is the jackknife's."""
    below = ((ratios < ratio).mean() + (ratios <= ratio).mean()) / 2
    bias = NORMAL.inv_cdf(min(max(float(below), 1 / RESAMPLES), 1 - 1 / RESAMPLES))
    left_out = (differences.sum() - differences) / (targets.sum() - targets)
    influences = left_out.mean() - left_out
    spread = 6 * (influences**2).sum() ** 1.5
    acceleration = (influences**3).sum() / spread if spread else 0.0
    moved = bias + NORMAL.inv_cdf(TAIL)
    return min(NORMAL.cdf(bias + moved / (1 - acceleration * moved)), 1 - 1 / RESAMPLES)


def line_of(case: Case) -> str:
    shares = " | ".join(f"{case.promoted[method]:.1%}" for method in METHODS)
    return f"| {case.count} | {case.effective:.1f} | {case.shape} | {shares} |"


def markdown(cases: list[Case]) -> str:
    lines = [
        "# How often the gate would promote what is no better",
        "",
        f"{date.today()}, {platform.machine()}, numpy {np.__version__}: {SAMPLES:,} simulated held-out splits a line,"
        f" {RESAMPLES:,} resamples each; a share of 5 % is known to 1 %.",
        "",
        "The candidate is exactly as good as the other model: a two-sided 95 % interval that is right lies above 0 in 2.5 %",
        "of the splits. Differences per target are drawn for each conversation. `effective` is the number of equally long",
        "conversations that say as much: (sum of targets)^2 / (sum of their squares).",
    ]
    for spread, words in SPREADS.items():
        lines += ["", f"## {words[0].upper()}{words[1:]} (spread {spread})", ""]
        lines += [f"| conversations | effective | differences | {' | '.join(METHODS)} |", "|---|---|---|---|---|---|"]
        lines += [line_of(case) for case in cases if case.spread == spread]
    lines += ["", *conclusions(cases), "", f"Made by `python {HERE}.py --write {HERE}.md`.", ""]
    return "\n".join(lines)


def conclusions(cases: list[Case]) -> list[str]:
    worst = {
        method: max(case.promoted[method] for case in cases if case.count == LEAST and case.spread <= 0.4)
        for method in METHODS
    }
    unequal = max(case.promoted["studentized"] for case in cases if case.effective >= LEAST and case.spread > 0.4)
    return [
        f"At {LEAST} conversations of equal lengths or the quickstart's, the worst case is"
        f" {', '.join(f'{share:.1%} ({method})' for method, share in worst.items())}.",
        f"With very unequal lengths, where the effective number reaches {LEAST}, it is {unequal:.1%} (studentized).",
    ]


if __name__ == "__main__":
    main()
