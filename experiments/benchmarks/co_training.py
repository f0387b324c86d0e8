"""Several LoRA trials of one base in one pass, against the same trials one after another.

    python experiments/benchmarks/co_training.py --write experiments/benchmarks/co_training.md
    python experiments/benchmarks/co_training.py --trials 1 2 --sizes small --rounds 3

SmolLM2-135M on a CPU with one thread (or on a GPU: --device cuda), trials with ranks of 4 to 32, half of them with dropout.
Some twenty minutes.
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

from components.models.precision import fast_on_cpu, fast_on_gpu
from experiments.benchmarks.co_training_kit.measure import Measured, measured_in_process
from experiments.benchmarks.co_training_kit.page import page
from experiments.benchmarks.co_training_kit.trials import SIZES, Setting
from experiments.benchmarks.gpu_kit.table import facts_of_machine
from experiments.benchmarks.step_kit.environment import ENVIRONMENT

LIBRARIES = ("torch", "transformers", "peft")


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES), help="(default: all)")
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 2, 4, 8], help="in one pass (default: 1 2 4 8)")
    parser.add_argument("--rounds", type=int, default=5, help="of each line, at most (default: 5)")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each line, about (default: 180)")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="(default: smollm2-135m-instruct)")
    parser.add_argument("--device", default="cpu", help="(default: cpu)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), help="(default: what the device is fast in)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table there")
    return parser.parse_args(words)


def main() -> int:
    arguments = parsed()
    os.environ.update(ENVIRONMENT)
    facts = facts_of_machine(LIBRARIES) | {
        "load before": f"{os.getloadavg()[0]:.1f}",
        "command": shlex.join(["python", *sys.argv]),
    }
    precision = arguments.precision or (fast_on_cpu() if arguments.device == "cpu" else fast_on_gpu())
    facts["precision"] = precision
    setting = Setting(model=arguments.model, device=arguments.device, precision=precision)
    found: list[Measured] = []
    with tempfile.TemporaryDirectory(prefix="co-training-") as folder:
        for size in arguments.sizes:
            for count in arguments.trials:
                found.append(
                    measured_in_process(
                        size,
                        count,
                        setting,
                        folder=Path(folder),
                        rounds=arguments.rounds,
                        seconds=arguments.seconds,
                    )
                )
                print(page(found, facts), flush=True)
                if arguments.write:
                    arguments.write.write_text(page(found, facts), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
