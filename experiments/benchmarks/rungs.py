"""What ASHA costs with an early first rung, and whether the best trial survives it.

    python experiments/benchmarks/rungs.py --curves /tmp/rung-curves.json --write experiments/benchmarks/rungs.md

A search of 32 trials of a tiny model is trained once for each seed, every trial to the end of its budget, with an evaluation
at each sixteenth of it (a run that was ended goes on from --curves). Then searches are replayed over these curves: trials
start in their order as places become free, and report to the scheduler's own HalvingRule, which may stop them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments`, `tests` and `components` lie

from components.cluster.scheduling.successive_halving import HalvingRule
from components.experiment.load_experiment import load_experiment
from components.experiment.spec import AshaSpec
from components.statistics.rank_correlation import spearman
from experiments.benchmarks.asha_brackets import Curve, read_curves, replay_order, train
from tests.support.toy_search import toy_search_folder

SEEDS, TRIALS, EVALUATIONS, ORDERS, DRAWS = range(5), 32, 16, 200, 500
OLD, NEW, BETWEEN = "first 1/4, one in 2", "first 1/16, one in 4", "first 1/16, one in 2"
BRANCHES = ("lora", "full")
CHANGES = f"""
data: {{eval_fraction: 0.4}}
trial: {{budget: {{epochs: 6, evaluations: {EVALUATIONS}}}, batch: {{rows_per_micro_batch: 8}}}}
search:
  trials: {TRIALS}
  space:
    full:
      method: {{kind: full}}
      optimizer:
        learning_rate: {{log_uniform: [1.0e-4, 3.0e-2]}}
        weight_decay: {{log_uniform: [1.0e-4, 1.0e-1]}}
      batch: {{rows_per_step: {{choice: [2, 4]}}}}
      schedule: {{warmup_fraction: {{choice: [0.0, 0.05]}}}}
"""


def rules(budget: int) -> dict[str, HalvingRule]:
    """The defaults before and now, and one between them, for trials of a budget in target tokens."""
    specs = {
        OLD: AshaSpec(first_rung_target_tokens=max(1, budget // 4), reduction_factor=2),
        BETWEEN: AshaSpec(reduction_factor=2),
        NEW: AshaSpec(),
    }
    return {name: HalvingRule.of(spec, spec.rungs(budget, 0.05)) for name, spec in specs.items()}


def curves_of(seed: int, known: Sequence[Curve]) -> Iterator[Curve]:
    with tempfile.TemporaryDirectory(prefix="rungs-") as name:
        folder = toy_search_folder(Path(name), CHANGES, absolute=True)
        experiment = load_experiment(folder / "toy.yaml", [f"search.seed={seed}", f"trial.seed={seed}"])
        yield from train(experiment, folder, known)


def ideal_share(trials: int, rule: HalvingRule, budget: int) -> float:
    """Of the budget of all trials, if their order at every rung is that of the end and they come one by one, at random."""
    generator, spent = random.Random(0), []
    for _ in range(DRAWS):
        curves = [
            Curve(
                number=number,
                branch=BRANCHES[number % 2],
                varied={},
                reports=tuple((mark, loss, 1.0) for mark in (*rule.rungs, budget)),
            )
            for number, loss in enumerate(generator.sample(range(trials), trials), start=1)
        ]
        spent.append(replay_order(curves, rule, dict.fromkeys(BRANCHES, 1), places=1).spent)
    return statistics.mean(spent)


def rows(curves: Mapping[int, Sequence[Curve]]) -> Iterator[str]:
    for seed, trials in curves.items():
        budget = trials[0].reports[-1][0]
        best = min(trials, key=lambda curve: curve.best)
        for name, rule in rules(budget).items():
            replays = [replay_order(order, rule, {"full": 1}) for order in _orders(trials)]
            kept = sum(best.number not in each.stopped for each in replays[1:]) / ORDERS
            regret = statistics.mean(each.best["full"] - best.best for each in replays[1:])
            first = "yes" if best.number not in replays[0].stopped else "no"
            share = statistics.mean(each.spent for each in replays[1:])
            yield f"| {seed} | {name} | {replays[0].spent:.2f} | {first} | {share:.2f} | {kept:.0%} | {regret:.4f} |"


def _orders(trials: Sequence[Curve]) -> Iterator[list[Curve]]:
    """That of the search, then others."""
    generator = random.Random(0)
    yield list(trials)
    for _ in range(ORDERS):
        yield generator.sample(list(trials), len(trials))


def correlations(curves: Mapping[int, Sequence[Curve]]) -> Iterator[str]:
    for sixteenth in (1, 2, 4, 8):
        found = [
            spearman([curve.reports[sixteenth - 1][1] for curve in trials], [curve.reports[-1][1] for curve in trials])
            for trials in curves.values()
        ]
        yield f"| {sixteenth}/16 | {' | '.join('-' if each is None else f'{each:.2f}' for each in found)} |"


def page(curves: Mapping[int, Sequence[Curve]], load: float) -> str:
    """load: the machine's load average when the page was made."""
    some = next(iter(curves.values()))
    budget, seeds = some[0].reports[-1][0], list(curves)
    shares = {
        trials: [ideal_share(trials, rules(1600)[name], 1600) for name in (OLD, BETWEEN, NEW)] for trials in (8, 32)
    }
    ideal = [f"| {trials} | {old:.2f} | {between:.2f} | {new:.2f} |" for trials, (old, between, new) in shares.items()]
    return "\n".join(
        [
            "# ASHA's rungs: what an early first one costs and saves",
            "",
            f"{TRIALS} trials a seed of a random two-layer Llama on 60 short conversations, full fine-tuning, each trained to"
            f" the end of {budget:,} target tokens with {EVALUATIONS} evaluations; learning rate, weight decay, rows per step"
            " and warm-up vary. Searches over these curves are replayed on 2 places with the scheduler's own rule: first in"
            f" the search's own order, then in {ORDERS} others (the last three columns, means). Spent: share of the target"
            " tokens of all trials. Kept: how often the trial with the lowest loss came to its end. Regret: how far the"
            " lowest reported loss is above the lowest of all curves, in nats.",
            "",
            "| seed | rungs | spent | best kept | spent, other orders | kept | regret |",
            "|---|---|---|---|---|---|---|",
            *rows(curves),
            "",
            "Spearman's rank correlation of the loss there with the loss at the end, over all trials:",
            "",
            f"| share of the budget | {' | '.join(f'seed {seed}' for seed in seeds)} |",
            "|---|" + "---|" * len(seeds),
            *correlations(curves),
            "",
            "If the order at a rung were always that of the end (two branches with brackets of their own, trials one by one,"
            f" {DRAWS:,} random orders), ASHA's rule would spend this share of all trials' budget:",
            "",
            f"| trials | {OLD} | {BETWEEN} | {NEW} |",
            "|---|---|---|---|",
            *ideal,
            "",
            f"{date.today()}, {os.cpu_count()} cores ({platform.machine()}), load {load:.1f}, no GPU used; torch"
            f" {torch.__version__}, transformers {transformers.__version__}.",
            "",
            f"Made by `python {shlex.join(sys.argv)}`.",
        ]
    )  # fmt: skip


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--curves", type=Path, required=True, help="JSON: what is trained already, and what will be")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page there, too")
    return parser.parse_args(words)


def main() -> None:
    arguments, curves = parsed(), {}
    for seed in SEEDS:
        file = arguments.curves.with_suffix(f".{seed}.json")
        known = read_curves(file)
        for curve in curves_of(seed, tuple(known)):
            known.append(curve)
            file.write_text(json.dumps([asdict(each) for each in known]), encoding="utf-8")
            print(f"seed {seed}, trial {curve.number}: {curve.reports[-1][1]:.4f}", flush=True)
        curves[seed] = known
    text = page(curves, os.getloadavg()[0])
    print(text)
    if arguments.write:
        arguments.write.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
