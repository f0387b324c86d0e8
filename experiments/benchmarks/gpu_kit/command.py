"""The command line of gpu.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from experiments.benchmarks.gpu_kit import table
from experiments.benchmarks.gpu_kit.parts import PARTS
from experiments.benchmarks.gpu_kit.run_parts import run_parts


def main(words: Sequence[str], *, description: str) -> int:
    """Returns the exit status: 1 if a check failed."""
    arguments = parse(words, description)
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    parts = [part for name, part in PARTS.items() if name in arguments.only]
    arguments.out.mkdir(parents=True, exist_ok=True)
    about = table.facts(device, minutes=arguments.minutes, shapes=arguments.shapes, commit=arguments.commit)
    results: list[table.PartResult] = []
    for result in run_parts(
        parts, device=device, shapes=arguments.shapes, seconds=60 * arguments.minutes, logs=arguments.out
    ):
        results.append(result)
        table.write(results, about, arguments.out)
        show(result)
    return int(any(result.failed for result in results))


def show(result: table.PartResult) -> None:
    print(table.headline(result))
    for check in result.checks:
        print(f"  {check.verdict:8}  {check.asked}: {check.seen}", flush=True)


def parse(words: Sequence[str], description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="gpu.md, gpu.json, a log of each part"
    )
    parser.add_argument("--only", type=names, default=tuple(PARTS), metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of them together; 9")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="by default cuda, where torch sees a GPU")
    parser.add_argument("--shapes", choices=("real", "tiny"), default="real")
    parser.add_argument("--commit", help="of this code; by default git says it, where there is one")
    arguments = parser.parse_args(words)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; --device cpu --shapes tiny runs the same code without one")
    return arguments


def names(text: str) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in chosen if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: no such part; there are {', '.join(PARTS)}")
    return chosen
