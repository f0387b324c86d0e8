"""One training step: Turnwise's own Trainer beside TRL, transformers' Trainer and loops by hand, on the same rows.

    python experiments/benchmarks/step_speed.py --works lora-quickstart --write experiments/benchmarks/step_speed.md
    python experiments/benchmarks/step_speed.py --works full-1024 --profile        where Turnwise's own time goes

SmolLM2-135M on a CPU, one thread each, in turn. TRL is installed by experiments/benchmarks/requirements.txt; a contestant
whose package is missing is left out, and the table says so. Some eight minutes a work.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where `experiments` and `components` lie

from components.models.precision import fast_on_cpu
from experiments.benchmarks.gpu_kit.table import facts_of_machine
from experiments.benchmarks.step_kit.contestants import CONTESTANTS, OURS, YARDSTICK
from experiments.benchmarks.step_kit.environment import ENVIRONMENT
from experiments.benchmarks.step_kit.page import append_line, history_line, page
from experiments.benchmarks.step_kit.profile import STEPS, profiled
from experiments.benchmarks.step_kit.race import run_race, steps_needed
from experiments.benchmarks.step_kit.result import Result, result_of
from experiments.benchmarks.step_kit.works import WORKS, Work, sizes, works, works_in_words

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "trl")
MOST_STEPS_PER_BLOCK = 3


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS), help="(default: all)")
    parser.add_argument(
        "--contestants", nargs="+", choices=tuple(CONTESTANTS), default=list(CONTESTANTS), help="(default: all)"
    )
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default=fast_on_cpu(), help="(default: what this CPU is fast in)"
    )
    parser.add_argument("--blocks", type=int, default=8, help="of each contestant, at most (default: 8)")
    parser.add_argument("--seconds", type=float, default=420.0, help="for each work, about (default: 420)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there, beside other works'")
    parser.add_argument("--history", type=Path, metavar="FILE", help="append a JSON line for each work")
    parser.add_argument("--profile", action="store_true", help="instead: where the time of Turnwise's own step goes")
    return parser.parse_args(words)


def raced(work: Work, arguments: argparse.Namespace) -> Result:
    chosen = [CONTESTANTS[name] for name in dict.fromkeys([OURS, *arguments.contestants])]
    chosen = [each for each in chosen if each.takes_part(work)]
    present = [each.name for each in chosen if not each.missing]
    race = run_race(work, [*present, YARDSTICK], rounds=arguments.blocks, seconds=arguments.seconds)
    race.lost |= {each.name: f"this Python has no package {each.missing}" for each in chosen if each.missing}
    return result_of(work.name, work.precision, race, sizes(work), work.steps_per_block)


def main() -> int:
    arguments = parsed()
    os.environ.update(ENVIRONMENT)
    load = os.getloadavg()[0]
    facts = facts_of_machine(LIBRARIES) | {"load before": f"{load:.1f}", "command": shlex.join(["python", *sys.argv])}
    results: list[Result] = []
    steps = STEPS if arguments.profile else steps_needed(arguments.blocks, MOST_STEPS_PER_BLOCK)
    with tempfile.TemporaryDirectory(prefix="step-speed-") as folder:
        for work in works(tuple(arguments.works), Path(folder), steps=steps, precision=arguments.precision):
            if arguments.profile:
                print(f"## {works_in_words(work.name, work.precision)}\n\n{profiled(work)}\n")
                continue
            results.append(raced(work, arguments))
            print(page("", results[-1:], facts).partition("\n## ")[2], flush=True)
            if arguments.history:
                append_line(arguments.history, history_line(results[-1], facts))
            if arguments.write:
                before = arguments.write.read_text(encoding="utf-8") if arguments.write.exists() else ""
                arguments.write.write_text(page(before, results[-1:], facts), encoding="utf-8")
    return int(any(not line.is_same_work for result in results for line in result.lines))


if __name__ == "__main__":
    raise SystemExit(main())
